-- Walks a part of a group's pending list and finds phantom ids: ids whose entry is no longer in the
-- stream. Put in front of scripts that count or acknowledge them.

-- Calls `each(row, is_phantom)` for the rows of XPENDING behind the id `from` ('-': from the beginning).
-- Looks at `most_rows` rows (and one more), `most_lookups` entries and `most_bytes` of payload at most.
-- Returns the id behind which to go on ('' at the end), or nil and the error that Redis answered with.
local function walk_pending(stream, group, from, most_rows, most_lookups, most_bytes, each)
  local rows = redis.pcall('XPENDING', stream, group, from, '+', most_rows + 1)
  if rows.err then return nil, rows.err end
  -- The first entry that exists at or behind the last id that was looked up; `ended`: there is none.
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

