-- Gives entries back: as idle as an orphan, and as if this delivery had never been.
--
-- KEYS  stream
-- ARGV  group, consumer, idle time in ms to leave them with, then for each entry: id, deliveries
-- Gives for each entry 'released', 'fenced' or 'gone'.
local stream, group, consumer, idle = KEYS[1], ARGV[1], ARGV[2], ARGV[3]

local verdicts = {}
for at = 4, #ARGV, 2 do
  local id, deliveries = ARGV[at], tonumber(ARGV[at + 1])
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
