-- Adds tasks to the end of a stream, each at most once per idempotency key.
--
-- KEYS  stream, then the record of every idempotency key by index
-- ARGV  greatest length of the stream (-1: no limit), life of a record in ms, then for each task:
--       index of its record (0: none), number of field strings, the field strings
-- Gives {ids, 'added', length}: an id for each task, in order. When not all could be added, the ids of
-- those before, and 'full' or Redis' error in place of 'added'.
--
-- The entry comes before its record: after the first write of a script, Redis refuses no more for want
-- of memory, so there is no entry without its record.
local stream, most, life = KEYS[1], tonumber(ARGV[1]), ARGV[2]
local ids, at = {}, 3
local length = redis.pcall('XLEN', stream)
if type(length) == 'table' then return {ids, length.err, 0} end

while at <= #ARGV do
  local record, fields = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local first = at + 2
  at = first + fields
  local id = record > 0 and redis.pcall('GET', KEYS[record])
  if not id then
    if most >= 0 and length >= most then return {ids, 'full', length} end
    id = redis.pcall('XADD', stream, '*', unpack(ARGV, first, at - 1))
    if type(id) == 'string' then
      length = length + 1
      if record > 0 then redis.call('SET', KEYS[record], id, 'PX', life) end
    end
  end
  if type(id) == 'table' then return {ids, id.err, length} end
  ids[#ids + 1] = id
end
return {ids, 'added', length}
