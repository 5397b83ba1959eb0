-- Restores entries of the recycle bin to their stream. Idempotent.
--
-- KEYS  original stream, marks of the recycle bin
-- ARGV  TTL of the marks in ms, group ('' none), name of the origin field, number of entries, then for
--       each: its position in the bin, '1' if it is known to have been deleted, ID, owner, delivery count,
--       origin to set if it has none ('' none), number of field strings, the field strings
-- Returns for each 'restored <id>', 'void' (it was never deleted), or the Redis error.
--
-- An entry that still exists because another group needs it is made pending again for its previous owner,
-- so that the other group does not receive it twice; all others are added as new entries.
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
