-- Checks whether other groups need an entry. Placed after before.lua and before scripts that delete entries.

-- Returns those of `ids`, finished in `group`, that are neither pending nor undelivered in any other group.
local function unneeded(stream, group, ids)
  local groups = redis.call('XINFO', 'GROUPS', stream)
  if #groups == 1 then return ids end
  local free = {}
  for _, id in ipairs(ids) do
    local needed = false
    for _, info in ipairs(groups) do
      local other = {}
      for i = 1, #info, 2 do other[info[i]] = info[i + 1] end
      needed = needed or other.name ~= group and (before(other['last-delivered-id'], id)
        or other.pending > 0 and #redis.call('XPENDING', stream, other.name, id, id, 1) > 0)
    end
    if not needed then free[#free + 1] = id end
  end
  return free
end
