-- Appends log entries to the logs of a response.
--
-- KEYS  logs (a JSON list)
-- ARGV  the new entries: JSON objects with commas between them; life of the logs in s
-- Gives 1, or 0 when what is there is no list.
--
-- As text, because decoding and encoding would change numbers and empty lists of other writers.
local logs = redis.call('GET', KEYS[1])
local list = '[' .. ARGV[1] .. ']'
if logs then
  local inner = string.match(logs, '^%s*%[%s*(.-)%s*%]%s*$')
  if not inner then return 0 end
  if inner ~= '' then list = '[' .. inner .. ',' .. ARGV[1] .. ']' end
end
redis.call('SET', KEYS[1], list, 'EX', ARGV[2])
return 1
