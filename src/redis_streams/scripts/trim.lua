-- Deletes a bounded number of entries from the beginning of a stream that no group needs.
--
-- KEYS  stream
-- ARGV  maximum entries to delete (0: only inspect), maximum remaining entries to count
-- Returns one of
--       {'gone'}                        the stream does not exist
--       {'no groups', length}           no consumer group, so nothing is trimmed
--       {'groups', removed, 1 if more can be deleted, length, number of remaining entries counted,
--        group that keeps the most, 'pending', 'unread' or 'nothing', first ID that it keeps,
--        its pending, its lag (-1: unknown), then of its oldest pending entry: idle ms (-1: none), consumer}
--
-- A group needs the entries that are pending or undelivered. It therefore keeps everything from its
-- oldest pending entry, or from the entry after its last delivered ID. Entries before the lowest of
-- these IDs are not needed. Reading and deleting happen in one script, so no delivery, claim or new
-- group can intervene.
local stream, most, count_most = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
-- Entries to read in one call, and gaps in a pending list to skip.
local AT_ONCE, LEAPS = 100, 50

local function plus_one(digits)
  local head, nines = string.match(digits, '^(%d-)(9*)$')
  local zeros = string.rep('0', #nines)
  if head == '' then return '1' .. zeros end
  return string.sub(head, 1, -2) .. string.char(string.byte(head, -1) + 1) .. zeros
end

-- Returns the lowest ID after `id` (exclusive ranges need Redis 6.2); the highest possible ID is returned unchanged.
local function after(id)
  local LARGEST = '18446744073709551615'
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq ~= LARGEST then return ms .. '-' .. plus_one(seq) end
  if ms ~= LARGEST then return plus_one(ms) .. '-0' end
  return id
end

local function first_from(id)
  return redis.call('XRANGE', stream, id, '+', 'COUNT', 1)[1]
end

-- Returns the oldest pending entry of a group that still exists: {id, consumer, idle, deliveries}. Pending IDs of
-- deleted entries keep nothing: each iteration skips all of them up to the next existing entry.
local function oldest_pending(group)
  local from = '-'
  for _ = 1, LEAPS do
    local pending = redis.call('XPENDING', stream, group, from, '+', 1)[1]
    if not pending then return nil end
    local entry = first_from(pending[1])
    if not entry then return nil end
    if entry[1] == pending[1] then return pending end
    from = entry[1]
  end
  return redis.call('XPENDING', stream, group, from, '+', 1)[1]
end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if groups.err then
  if string.find(groups.err, 'no such key', 1, true) then return {'gone'} end
  return redis.error_reply(groups.err)
end
local length = redis.call('XLEN', stream)
if #groups == 0 then return {'no groups', length} end

local keeper
for _, fields in ipairs(groups) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  group.from, group.why = after(group['last-delivered-id']), 'unread'
  local pending = group.pending > 0 and oldest_pending(group.name)
  if pending and before(pending[1], group.from) then
    group.from, group.why, group.oldest = pending[1], 'pending', pending
  end
  if not keeper or before(group.from, keeper.from) then keeper = group end
end

local function first_is_free()
  local first = first_from('-')
  return first and before(first[1], keeper.from)
end

local removed = 0
if most > 0 and first_is_free() then
  -- Deletes whole nodes of the stream without reading fields. Redis before 6.2 returns an error.
  local trimmed = redis.pcall('XTRIM', stream, 'MINID', '~', keeper.from, 'LIMIT', most)
  if type(trimmed) == 'number' then removed = trimmed end
  if removed == 0 then
    -- Delete entries that share their node with needed ones.
    local ids = {}
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', keeper.from, 'COUNT', math.min(most, AT_ONCE))) do
      if before(entry[1], keeper.from) then ids[#ids + 1] = entry[1] end
    end
    removed = redis.call('XDEL', stream, unpack(ids))
  end
  length = redis.call('XLEN', stream)
end

local kept, counted = first_from(keeper.from), 0
if count_most > 0 then counted = #redis.call('XRANGE', stream, keeper.from, '+', 'COUNT', count_most) end
local oldest = keeper.oldest or {}
return {
  'groups', removed, first_is_free() and 1 or 0, length, counted,
  keeper.name, kept and keeper.why or 'nothing', kept and kept[1] or keeper.from,
  keeper.pending, tonumber(keeper.lag or -1) or -1, oldest[3] or -1, oldest[2] or '',
}
