-- Finds phantom IDs in a part of a group's pending list: IDs whose entry was deleted from the stream.
-- Prepended to scripts that count or acknowledge them.

-- Calls `each(row, is_phantom)` for the rows of XPENDING after the ID `from` ('-': from the beginning).
-- Reads at most `most_rows` rows (and one more), `most_lookups` entries and `most_bytes` of payload.
-- Returns the ID after which to continue ('' at the end), or nil and the Redis error.
local function walk_pending(stream, group, from, most_rows, most_lookups, most_bytes, each)
  local rows = redis.pcall('XPENDING', stream, group, from, '+', most_rows + 1)
  if rows.err then return nil, rows.err end
  -- First existing entry at or after the last ID that was looked up; `ended`: there is none.
  local existing, ended, lookups, bytes = nil, false, 0, 0
  local last = from
  for _, row in ipairs(rows) do
    local id = row[1]
    if id ~= from then
      if not ended and not (existing and before(id, existing)) then
        if lookups >= most_lookups or bytes >= most_bytes then return last end
        lookups = lookups + 1
        local found = redis.call('XRANGE', stream, id, '+', 'COUNT', 1)[1]
        existing, ended = found and found[1], not found
        for _, text in ipairs(found and found[2] or {}) do bytes = bytes + #text end
      end
      each(row, ended or existing ~= id)
      last = id
    end
  end
  if #rows > most_rows then return last end
  return ''
end

