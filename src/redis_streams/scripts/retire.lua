-- Deletes unused consumers of a group: no heartbeat, nothing pending, idle for long.
--
-- KEYS  stream, then the heartbeat of each consumer
-- ARGV  group, minimum idle time in ms, maximum size of a group whose idle times are read here, then the
--       consumers
-- Returns for each consumer 'deleted', 'present' (has a heartbeat), 'busy' (has pending entries), 'awake'
--       (recently active) or 'gone'.
--
-- Redis returns idle times only for all consumers of a group at once, which blocks it for milliseconds if
-- there are thousands. In larger groups the idle time that the caller has read counts; heartbeat and
-- pending entries are always checked here, so pending entries are never lost.
local stream, group, least_idle, looked_up = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local function as_map(fields)
  local map = {}
  for i = 1, #fields, 2 do map[fields[i]] = fields[i + 1] end
  return map
end

local size, idle
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, fields in ipairs(groups.err and {} or groups) do
  local info = as_map(fields)
  if info.name == group then size = info.consumers end
end
if size and size <= looked_up then
  idle = {}
  for _, fields in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local info = as_map(fields)
    idle[info.name] = info.idle
  end
end

local verdicts = {}
for n = 4, #ARGV do
  local consumer, verdict = ARGV[n], nil
  if not size or (idle and not idle[consumer]) then
    verdict = 'gone'
  elseif redis.call('EXISTS', KEYS[n - 2]) == 1 then
    verdict = 'present'
  elseif #redis.call('XPENDING', stream, group, '-', '+', 1, consumer) > 0 then
    verdict = 'busy'
  elseif idle and idle[consumer] < least_idle then
    verdict = 'awake'
  else
    redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer)
    verdict = 'deleted'
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
