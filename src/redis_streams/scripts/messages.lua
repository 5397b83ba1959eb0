-- Lists a part of the messages of a stream, bounded so that Redis is not blocked noticeably.
--
-- KEYS  the stream, or its dead-letter stream
-- ARGV  state (pending, unread, dead), group, start ('-', or an ID after '('), maximum entries to read,
--       maximum matches, maximum bytes of payload to read, bytes of each value to return (0: none),
--       owner, minimum idle time in ms, '1' to filter by field and its name, text to search for
-- Returns the ID after which to continue ('(' and the ID, '' at the end), the number of entries read, then
-- for each match {id, owner, deliveries, idle ms, fields, bytes, {name, value, bytes of the value, …}}.
-- A missing group or stream has no messages.
local stream, state, group, start = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local most, wanted, budget, shown = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local owner, least_idle, by_field, field, text = ARGV[8], tonumber(ARGV[9]), ARGV[10] == '1', ARGV[11], ARGV[12]
local MOST_FIELDS = 100
local searches = by_field or text ~= ''

local result, looked, last, full = {'', 0}, 0, nil, false

-- Reads one message; `body` is nil if the entry was deleted.
local function look(id, body, who, idle, deliveries)
  looked, last = looked + 1, id
  local bytes, match, fields = 0, not searches, {}
  for i = 1, #(body or {}), 2 do
    local name, value = body[i], body[i + 1]
    bytes = bytes + #name + #value
    if searches and not match and (not by_field or name == field) then
      match = text == '' or string.find(value, text, 1, true) ~= nil
    end
    if shown > 0 and #fields < 3 * MOST_FIELDS then
      fields[#fields + 1] = string.sub(name, 1, shown)
      fields[#fields + 1] = string.sub(value, 1, shown)
      fields[#fields + 1] = #value
    end
  end
  budget = budget - bytes
  if match then
    result[#result + 1] = {id, who, deliveries, idle, #(body or {}) / 2, bytes, fields}
  end
  full = looked >= most or #result - 2 >= wanted or budget <= 0
end

if state == 'pending' then
  local rows
  if owner ~= '' then
    rows = redis.pcall('XPENDING', stream, group, start, '+', most, owner)
  else
    rows = redis.pcall('XPENDING', stream, group, start, '+', most)
  end
  if rows.err then
    if string.sub(rows.err, 1, 7) ~= 'NOGROUP' then return rows end
    rows = {}
  end
  for at, row in ipairs(rows) do
    -- Released by XNACK, an entry has no owner and is idle -1.
    local released = row[3] < 0
    if released or row[3] >= least_idle then
      -- Read even if no payload is returned: it shows whether the entry was deleted.
      local found = redis.call('XRANGE', stream, row[1], row[1])[1]
      look(row[1], found and found[2], row[2] or '', math.max(row[3], 0), math.min(row[4], 2 ^ 53))
    else
      looked, last = looked + 1, row[1]
      full = looked >= most
    end
    if full and (at < #rows or #rows == most) then break end
    full = false
  end
else
  if state == 'unread' then
    local delivered
    local groups = redis.pcall('XINFO', 'GROUPS', stream)
    for _, info in ipairs(groups.err and {} or groups) do
      local map = {}
      for i = 1, #info, 2 do map[info[i]] = info[i + 1] end
      if map.name == group then delivered = map['last-delivered-id'] end
    end
    if not delivered then return result end
    if start == '-' or before(string.match(start, '%d+%-%d+') or '0-0', delivered) then start = '(' .. delivered end
  end
  -- Read large payloads one at a time, small ones in larger batches.
  local step = 1
  while not full do
    local before_it = budget
    local rows = redis.call('XRANGE', stream, start, '+', 'COUNT', step)
    for at, row in ipairs(rows) do
      look(row[1], row[2], '', 0, 0)
      if full then break end
    end
    if #rows < step then
      if not (full and last ~= rows[#rows][1]) then full = false end
      break
    end
    start = '(' .. last
    if (before_it - budget) * 8 < budget then step = math.min(2 * step, 64) else step = 1 end
  end
end
if full then result[1] = '(' .. last end
result[2] = looked
return result
