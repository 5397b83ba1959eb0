-- Deletes consumers of a group that nothing holds: no heartbeat, nothing pending, idle for long.
--
-- KEYS  stream, then the heartbeat of each consumer
-- ARGV  group, least idle time in ms, consumers a group may have for idle times to be looked up
--       here, then the consumers
-- Gives for each consumer 'deleted', 'present' (it has a heartbeat), 'busy' (something is pending),
--       'awake' (it asked for something lately) or 'gone'.
--
-- Redis tells idle times only of all consumers of a group at once, which takes it milliseconds for
-- thousands of them. In a group that large the idle time counts as it was read before; heartbeat
-- and pending entries are looked at here in any case, so that nothing pending is ever dropped.
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
