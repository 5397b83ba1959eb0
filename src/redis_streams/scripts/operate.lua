-- Applies an operator's action to entries that have not changed since they were selected.
--
-- KEYS  stream, its dead-letter stream, marks of the recycle bin, then the delivery records and
--       heartbeats, referenced by index
-- ARGV  action (drop, retry, bury), state (pending, unread), group, minimum idle time in ms, TTL of the
--       marks and of a record in ms, reason, name of the origin field, the stream as text, number of
--       entries, then for each: its position in the bin ('' none), ID, owner, delivery count, index of
--       its record, index of the owner's heartbeat (0: not checked)
-- Returns for each entry
--       'done'
--       'vanished'         its payload was already deleted: only the pending ID was acknowledged
--       'acknowledged', 'claimed', 'delivered_again', 'active', 'alive', 'delivered', 'gone',
--       'needed_elsewhere', 'decided'   skipped, with the reason
--       or the Redis error
--
-- A script is not rolled back, so everything that can fail precedes the first acknowledgement.
local stream, grave, marks = KEYS[1], KEYS[2], KEYS[3]
local action, state, group, least_idle = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local marks_life, record_life, why = ARGV[5], ARGV[6], ARGV[7]
local origin_field, stream_name, count = ARGV[8], ARGV[9], tonumber(ARGV[10])
local MOST_FIELDS, MOST_HISTORY = 7000, 20
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function last_delivered()
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, info in ipairs(groups.err and {} or groups) do
    local map = {}
    for i = 1, #info, 2 do map[info[i]] = info[i + 1] end
    if map.name == group then return map['last-delivered-id'] end
  end
end

-- Returns the first delivery, the history including this delivery, and the last error of a delivery record.
local function history_of(record, owner, deliveries, idle)
  local known = redis.pcall('HMGET', record, 'first_ms', 'history', 'error')
  if known.err then known = {} end
  local first = tonumber(known[1] or nil) or now - idle
  local readable, history = pcall(cjson.decode, known[2] or '[]')
  if not readable or type(history) ~= 'table' then history = {} end
  local last = history[#history]
  history[#history + 1] = {
    consumer = owner, deliveries = deliveries, idle_ms = idle, lost_ms = now, reason = why,
    delivered_ms = last and last.lost_ms or first,
  }
  if #history > MOST_HISTORY then table.remove(history, 1) end
  return first, cjson.encode(history), known[3]
end

local function without_marks(fields)
  local own, has_origin = {}, false
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 5) ~= 'dead_' then
      own[#own + 1] = fields[i]
      own[#own + 1] = fields[i + 1]
      has_origin = has_origin or fields[i] == origin_field
    end
  end
  return own, has_origin
end

local function operate(place, id, owner, deliveries, record, heartbeat)
  local idle = 0
  if state == 'pending' then
    local found = redis.pcall('XPENDING', stream, group, id, id, 1)
    if found.err then
      if string.sub(found.err, 1, 7) == 'NOGROUP' then return 'gone' end
      return found.err
    end
    local entry = found[1]
    if not entry then return 'acknowledged' end
    if (entry[2] or '') ~= owner then return 'claimed' end
    -- No count is shown beyond this; XNACK FATAL sets the largest one there is.
    if math.min(entry[4], 2 ^ 53) ~= math.min(deliveries, 2 ^ 53) then return 'delivered_again' end
    -- XNACK gave it back to the group: without an owner, idle -1.
    local released = entry[3] < 0 or owner == ''
    if not released and entry[3] < least_idle then return 'active' end
    if not released and heartbeat and redis.call('EXISTS', heartbeat) == 1 then return 'alive' end
    idle = math.max(entry[3], 0)
  else
    local delivered = last_delivered()
    if not delivered then return 'gone' end
    if not before(delivered, id) then return 'delivered' end
  end
  local body = redis.call('XRANGE', stream, id, id)[1]
  if not body then
    if state ~= 'pending' then return 'gone' end
    redis.call('XACK', stream, group, id)
    redis.call('DEL', record)
    return 'vanished'
  end
  if state == 'unread' and #unneeded(stream, group, {id}) == 0 then return 'needed_elsewhere' end

  if action == 'drop' then
    -- The mark decides whether the message was deleted, even if the reply is lost.
    if place == '' or redis.call('HEXISTS', marks, place) == 1 then return 'decided' end
    local marked = redis.pcall('HSET', marks, place, 'dropped')
    if type(marked) == 'table' then return marked.err end
    redis.call('PEXPIRE', marks, marks_life)
  else
    local fields, has_origin = without_marks(body[2])
    if #fields > MOST_FIELDS then return 'ERR a task of ' .. #fields / 2 .. ' fields is too large to move' end
    local first, history, last_error = history_of(record, owner, deliveries, idle)
    local to = stream
    if action == 'bury' then
      to = grave
      for _, text in ipairs({'dead_stream', stream, 'dead_group', group, 'dead_id', id,
        'dead_deliveries', string.format('%.0f', math.min(deliveries, 2 ^ 53)), 'dead_first_ms', string.format('%.0f', first),
        'dead_at_ms', string.format('%.0f', now), 'dead_history', history, 'dead_error', last_error or why}) do
        fields[#fields + 1] = text
      end
    elseif not has_origin then
      -- A retry keeps the idempotency key.
      fields[#fields + 1] = origin_field
      fields[#fields + 1] = cjson.encode({stream = stream_name, id = id, hop = 0})
    end
    local added = redis.pcall('XADD', to, '*', unpack(fields))
    if type(added) == 'table' then return added.err end
    if action == 'retry' then
      -- If the user may not write the record, the age restarts.
      local next_record = string.sub(record, 1, #record - #id) .. added
      redis.pcall('HSET', next_record, 'first_ms', string.format('%.0f', first), 'history', history)
      redis.pcall('PEXPIRE', next_record, record_life)
    end
  end
  if state == 'pending' then redis.call('XACK', stream, group, id) end
  if #unneeded(stream, group, {id}) > 0 then redis.call('XDEL', stream, id) end
  redis.call('DEL', record)
  return 'done'
end

local verdicts = {}
for i = 1, count do
  local at = 5 + 6 * i
  local heartbeat = tonumber(ARGV[at + 5])
  verdicts[i] = operate(ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3]),
    KEYS[tonumber(ARGV[at + 4])], heartbeat > 0 and KEYS[heartbeat])
end
return verdicts
