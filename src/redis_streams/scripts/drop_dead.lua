-- Deletes dead letters that were copied to the recycle bin.
--
-- KEYS  dead-letter stream, marks of the recycle bin
-- ARGV  TTL of the marks in ms, then for each dead letter: its position in the bin, ID
-- Returns for each 'done', 'gone' (already replayed or deleted), 'decided' (its position in the bin is
-- already marked), or the Redis error.
local verdicts = {}
for at = 2, #ARGV, 2 do
  local place, id = ARGV[at], ARGV[at + 1]
  local verdict = 'done'
  if #redis.call('XRANGE', KEYS[1], id, id) == 0 then
    verdict = 'gone'
  elseif redis.call('HEXISTS', KEYS[2], place) == 1 then
    verdict = 'decided'
  else
    local marked = redis.pcall('HSET', KEYS[2], place, 'dropped')
    if type(marked) == 'table' then
      verdict = marked.err
    else
      redis.call('PEXPIRE', KEYS[2], ARGV[1])
      redis.call('XDEL', KEYS[1], id)
    end
  end
  verdicts[#verdicts + 1] = verdict
end
return verdicts
