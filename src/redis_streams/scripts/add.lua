-- Adds tasks to the end of a stream, each at most once per idempotency key.
--
-- KEYS  stream, then the records of the idempotency keys, referenced by index
-- ARGV  maximum length of the stream (-1: no limit), TTL of a record in ms, then for each task:
--       index of its record (0: none), number of field strings, the field strings
-- Returns {ids, 'added', length} with one ID per task, in order. If not all tasks were added: the IDs of
-- those before, and 'full' or the Redis error instead of 'added'.
--
-- The entry is added before its record is written: after the first write of a script, Redis does not
-- refuse commands for lack of memory, so an entry never lacks its record.
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
