-- Finds the entries of the queries ARGV[2], ARGV[3], ... among the oldest and the newest ARGV[1] entries of the stream
-- KEYS[1]. Returns for each entry: query, ID, and 'open' if a group has not finished it yet, else 'done'.
local wanted, seen, found = {}, {}, {}
for i = 2, #ARGV do wanted[ARGV[i]] = true end

local function look(entries)
  for _, entry in ipairs(entries) do
    local id, fields = entry[1], entry[2]
    if not seen[id] then
      seen[id] = true
      for i = 1, #fields, 2 do
        if fields[i] == 'query_id' and wanted[fields[i + 1]] then
          found[#found + 1] = {fields[i + 1], id, 'done'}
        end
      end
    end
  end
end

look(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', ARGV[1]))
look(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1]))
if #found == 0 then return found end

for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local name, last
  for i = 1, #group, 2 do
    if group[i] == 'name' then name = group[i + 1] end
    if group[i] == 'last-delivered-id' then last = group[i + 1] end
  end
  for _, entry in ipairs(found) do
    if entry[3] == 'done' then
      local undelivered = before(last, entry[2])
      if undelivered or #redis.call('XPENDING', KEYS[1], name, entry[2], entry[2], 1) > 0 then entry[3] = 'open' end
    end
  end
end
return found
