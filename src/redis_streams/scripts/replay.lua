-- Puts dead letters back into the stream they came from, as new tasks.
--
-- KEYS  stream of dead letters, stream
-- ARGV  ids
-- Gives the number put back; stops with the error of the first that Redis refuses.
local put_back = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', KEYS[1], id, id)[1]
  if letter then
    local fields = {}
    for i = 1, #letter[2], 2 do
      if string.sub(letter[2][i], 1, 5) ~= 'dead_' then
        fields[#fields + 1] = letter[2][i]
        fields[#fields + 1] = letter[2][i + 1]
      end
    end
    if #fields > 0 then redis.call('XADD', KEYS[2], '*', unpack(fields)) end
    redis.call('XDEL', KEYS[1], id)
    put_back = put_back + 1
  end
end
return put_back
