-- Drops dead letters that are in the recycle bin.
--
-- KEYS  stream of dead letters, marks of the recycle bin
-- ARGV  life of the marks in ms, then for each letter: its place in the bin, id
-- Gives for each 'done', 'gone' (somebody replayed or dropped it), 'decided' (its place in the bin
-- was given up), or the error with which Redis refused.
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
