-- Appends log entries to the logs of a response.
--
-- KEYS  logs (a JSON list)
-- ARGV  new entries (comma-separated JSON objects), TTL of the logs in s
-- Returns 1, or 0 if the stored value is not a list.
--
-- Appended as text: decoding and encoding would change numbers and empty lists of other writers.
local logs = redis.call('GET', KEYS[1])
local list = '[' .. ARGV[1] .. ']'
if logs then
  local inner = string.match(logs, '^%s*%[%s*(.-)%s*%]%s*$')
  if not inner then return 0 end
  if inner ~= '' then list = '[' .. inner .. ',' .. ARGV[1] .. ']' end
end
redis.call('SET', KEYS[1], list, 'EX', ARGV[2])
return 1
