-- Releases entries: sets the given idle time and takes back the delivery from the delivery count.
--
-- KEYS  stream
-- ARGV  group, consumer, then for each entry: ID, delivery count, idle time to set in ms
-- Returns for each entry 'released', 'fenced' or 'gone'.
local stream, group, consumer = KEYS[1], ARGV[1], ARGV[2]

local verdicts = {}
for at = 3, #ARGV, 3 do
  local id, deliveries, idle = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  local entry = not found.err and found[1]
  local verdict
  if not entry then
    verdict = 'gone'
  elseif entry[2] ~= consumer or entry[4] ~= deliveries then
    verdict = 'fenced'
  else
    verdict = 'released'
    redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', idle, 'RETRYCOUNT', deliveries - 1, 'JUSTID')
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
