-- Moves dead letters back into their stream, as new tasks.
--
-- KEYS  dead-letter stream, stream
-- ARGV  name of the origin field, the stream as text, then IDs
-- Returns the error of the first dead letter that Redis refuses, which stops the replay ('' if none), then
-- the IDs of the replayed ones.
--
-- An entry that was still in its first stream has no origin field; it is added, so that the task keeps
-- its idempotency key. A dead letter is deleted only after its task has been added.
local grave, stream, origin_field, stream_name = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local result = {''}
for at = 3, #ARGV do
  local id = ARGV[at]
  local letter = redis.call('XRANGE', grave, id, id)[1]
  if letter then
    local fields, had_origin, first_id = {}, false, nil
    for i = 1, #letter[2], 2 do
      local name, value = letter[2][i], letter[2][i + 1]
      if name == 'dead_id' then first_id = value end
      had_origin = had_origin or name == origin_field
      if string.sub(name, 1, 5) ~= 'dead_' then
        fields[#fields + 1] = name
        fields[#fields + 1] = value
      end
    end
    if first_id and not had_origin then
      fields[#fields + 1] = origin_field
      fields[#fields + 1] = cjson.encode({stream = stream_name, id = first_id, hop = 0})
    end
    if #fields > 0 then
      local added = redis.pcall('XADD', stream, '*', unpack(fields))
      if type(added) == 'table' then
        result[1] = added.err
        return result
      end
    end
    redis.call('XDEL', grave, id)
    result[#result + 1] = id
  end
end
return result
