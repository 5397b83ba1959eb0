-- Puts entries of the recycle bin back to where they were, each once however often it is asked.
--
-- KEYS  the stream they were in, marks of the recycle bin
-- ARGV  life of the marks in ms, group ('' none), name of the field that carries a task's origin, number
--       of entries, then for each: its place in the bin, '1' when it is known to have been dropped,
--       id, owner, deliveries, its origin for want of another ('' none), number of field strings, the
--       field strings
-- Gives for each 'restored <id>', 'void' (it was never taken out), or the error with which Redis refused.
--
-- An entry that is still there, because another group needed it, is made pending again under its
-- old owner, so that nobody gets it twice; all others are added anew.
local stream, marks, life, group = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local origin_field, count = ARGV[3], tonumber(ARGV[4])
local MOST_FIELDS, LONG_IDLE_MS = 7000, 86400000

local function restore(place, known, id, owner, deliveries, origin, first, last)
  local mark = redis.call('HGET', marks, place)
  if mark and string.sub(mark, 1, 9) == 'restored ' then return mark end
  if mark == 'void' or not mark and not known then
    redis.call('HSET', marks, place, 'void')
    redis.call('PEXPIRE', marks, life)
    return 'void'
  end
  local back
  if group ~= '' and #redis.call('XRANGE', stream, id, id) > 0 then
    local claimed = redis.pcall('XCLAIM', stream, group, owner, 0, id, 'IDLE', LONG_IDLE_MS, 'RETRYCOUNT', deliveries,
      'FORCE', 'JUSTID')
    if claimed.err then return claimed.err end
    back = id
  else
    if last - first >= MOST_FIELDS then return 'ERR a task of so many fields is too large to put back' end
    local fields = {unpack(ARGV, first, last)}
    if origin ~= '' then
      local has_origin = false
      for i = 1, #fields, 2 do has_origin = has_origin or fields[i] == origin_field end
      if not has_origin then
        fields[#fields + 1] = origin_field
        fields[#fields + 1] = origin
      end
    end
    back = redis.pcall('XADD', stream, '*', unpack(fields))
    if type(back) == 'table' then return back.err end
  end
  redis.call('HSET', marks, place, 'restored ' .. back)
  redis.call('PEXPIRE', marks, life)
  return 'restored ' .. back
end

local results, at = {}, 5
for i = 1, count do
  local first = at + 7
  local last = first + tonumber(ARGV[at + 6]) - 1
  results[i] = restore(ARGV[at], ARGV[at + 1] == '1', ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], first, last)
  at = last + 1
end
return results
