-- Claims lost entries, and dead-letters those that exceed the delivery limit.
--
-- KEYS  stream, dead-letter stream, hash of failures, then the delivery records and heartbeats,
--       referenced by index
-- ARGV  group, consumer, minimum idle time in ms, delivery limit, TTL of a record in ms, number of
--       entries, counter of dead letters and field of the last failure in the hash of failures, then
--       for each entry: ID, expected owner and delivery count, index of its record, index of the
--       owner's heartbeat (0: the entry belongs to this consumer)
-- Returns for each entry one of
--       {'claimed', id, deliveries, ms since the first delivery, fields}
--       {'buried', id, deliveries}  dead-lettered
--       {'vanished', id}            the entry was deleted; its pending ID is acknowledged
--       {'spared', id}              skipped: changed since it was read, or the owner has a heartbeat
--       {'refused', id, error}      Redis refused the dead letter; the entry is still pending
local stream, grave, failures = KEYS[1], KEYS[2], KEYS[3]
local group, consumer, least_idle = ARGV[1], ARGV[2], tonumber(ARGV[3])
local most, life, count = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local MOST_FIELDS, MOST_HISTORY, MOST_REASON = 7000, 20, 500
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function forget(id, record)
  redis.call('XACK', stream, group, id)
  local free = unneeded(stream, group, {id})
  if #free > 0 then redis.call('XDEL', stream, id) end
  redis.call('DEL', record)
end

local function bury(id, fields, deliveries, record, first, history, why)
  local letter = {}
  for i = 1, #fields, 2 do
    -- Drop the fields of an earlier dead-lettering; they are outdated.
    if string.sub(fields[i], 1, 5) ~= 'dead_' then
      letter[#letter + 1] = fields[i]
      letter[#letter + 1] = fields[i + 1]
    end
  end
  if #letter > MOST_FIELDS then
    return {'refused', id, 'ERR a task of ' .. #letter / 2 .. ' fields is too large to dead-letter'}
  end
  local last = redis.pcall('HGET', record, 'error')
  if type(last) ~= 'string' then last = why end
  for _, text in ipairs({'dead_stream', stream, 'dead_group', group, 'dead_id', id,
    'dead_deliveries', string.format('%.0f', deliveries), 'dead_first_ms', string.format('%.0f', first),
    'dead_at_ms', string.format('%.0f', now), 'dead_history', history, 'dead_error', last}) do
    letter[#letter + 1] = text
  end
  local added = redis.pcall('XADD', grave, '*', unpack(letter))
  if type(added) == 'table' then return {'refused', id, added.err} end
  forget(id, record)
  local reason = last
  -- Truncate at a character boundary.
  if #reason > MOST_REASON then reason = string.gsub(string.sub(reason, 1, MOST_REASON), '[\192-\255][\128-\191]*$', '') end
  local written = cjson.encode({kind = 'dead_lettered', reason = reason, entry = id, ts_ms = now})
  redis.pcall('HINCRBY', failures, ARGV[7], 1)
  redis.pcall('HSET', failures, ARGV[8], written)
  return {'buried', id, deliveries}
end

local function take(id, owner, deliveries, record, heartbeat)
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  local entry = not found.err and found[1]
  if not entry or (entry[2] or '') ~= owner or entry[4] ~= deliveries then return {'spared', id} end
  -- XNACK gave it back to the group: without an owner, idle -1. It waits for nobody.
  local released = entry[3] < 0 or owner == ''
  local idle = math.max(entry[3], 0)
  if not released and idle < least_idle then return {'spared', id} end
  if not released and heartbeat and redis.call('EXISTS', heartbeat) == 1 then return {'spared', id} end
  local body = redis.call('XRANGE', stream, id, id)[1]
  if not body then
    redis.call('XACK', stream, group, id)
    redis.call('DEL', record)
    return {'vanished', id}
  end

  local known = redis.pcall('HMGET', record, 'first_ms', 'history')
  if known.err then known = {} end
  local first = tonumber(known[1] or nil) or now - idle
  local readable, history = pcall(cjson.decode, known[2] or '[]')
  if not readable or type(history) ~= 'table' then history = {} end
  local before = history[#history]
  local why = released and 'released by a worker (XNACK)' or heartbeat and 'the owner has no heartbeat'
    or 'the owner is alive but does not run this task'
  history[#history + 1] = {
    consumer = owner, deliveries = deliveries, idle_ms = idle, lost_ms = now, reason = why,
    delivered_ms = before and before.lost_ms or first,
  }
  if #history > MOST_HISTORY then table.remove(history, 1) end
  local written = cjson.encode(history)

  if deliveries > most then
    local last = owner == '' and 'it has no owner' or 'the last owner was ' .. owner
    -- XNACK FATAL sets the largest count there is.
    local times = deliveries >= 2 ^ 53 and 'rejected for good' or 'delivered ' .. deliveries .. ' times'
    deliveries = math.min(deliveries, 2 ^ 53)
    why = times .. '; ' .. last .. ': ' .. why
    return bury(id, body[2], deliveries, record, first, written, why)
  end
  redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', 0, 'RETRYCOUNT', deliveries + 1, 'JUSTID')
  redis.pcall('HSET', record, 'first_ms', string.format('%.0f', first), 'history', written)
  redis.pcall('PEXPIRE', record, life)
  return {'claimed', id, deliveries + 1, now - first, body[2]}
end

local results = {}
for i = 1, count do
  local at = 4 + 5 * i
  local heartbeat = tonumber(ARGV[at + 4])
  results[i] = take(ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), KEYS[tonumber(ARGV[at + 3])],
    heartbeat > 0 and KEYS[heartbeat])
end
return results
