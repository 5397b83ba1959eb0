-- Resets the idle time of running tasks of a consumer without counting a delivery.
--
-- KEYS  stream, then the delivery record of each task
-- ARGV  group, consumer, TTL of a record in ms, then for each task: ID, delivery count
-- Returns for each task 'kept', 'fenced' or 'gone'. Tasks that were claimed by others are not taken back.
--
-- XCLAIM precedes the record: if Redis is out of memory, the lease is still renewed.
local stream, group, consumer, life = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local verdicts = {}
for task = 1, #KEYS - 1 do
  local id, deliveries, record = ARGV[2 + 2 * task], tonumber(ARGV[3 + 2 * task]), KEYS[1 + task]
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  local entry = not found.err and found[1]
  if not entry then
    verdicts[task] = 'gone'
  elseif entry[2] ~= consumer or entry[4] ~= deliveries then
    verdicts[task] = 'fenced'
  else
    verdicts[task] = 'kept'
    -- XCLAIM would remove the pending ID of a deleted entry, whose task is still running.
    if #redis.call('XRANGE', stream, id, id) > 0 then
      redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', 0, 'JUSTID')
      if redis.pcall('HSETNX', record, 'first_ms', string.format('%.0f', now - entry[3])) == 1 then
        redis.pcall('PEXPIRE', record, life)
      end
    end
  end
end
return verdicts
