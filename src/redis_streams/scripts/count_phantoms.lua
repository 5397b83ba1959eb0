-- Counts phantom IDs in a part of a group's pending list. Read-only.
--
-- KEYS  stream
-- ARGV  group, ID after which to start ('-': from the beginning), maximum rows, entries and bytes to read
-- Returns {ID after which to continue ('' at the end), lower bound for the whole group,
--          then consumer and count of each consumer with phantom IDs}.
--
-- The lower bound is pending IDs minus entries. (Subtracting the lag would make it tighter, but Redis
-- may report a lag that is too high.)
local stream, group = KEYS[1], ARGV[1]

local bound = 0
local groups = redis.pcall('XINFO', 'GROUPS', stream)
for _, fields in ipairs(groups.err and {} or groups) do
  local info = {}
  for i = 1, #fields, 2 do info[fields[i]] = fields[i + 1] end
  if info.name == group then bound = math.max(0, info.pending - redis.call('XLEN', stream)) end
end

local counts, consumers = {}, {}
local after, err = walk_pending(stream, group, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]),
  function(row, is_phantom)
    if not is_phantom then return end
    if not counts[row[2]] then consumers[#consumers + 1] = row[2] end
    counts[row[2]] = (counts[row[2]] or 0) + 1
  end)
if not after then return redis.error_reply(err) end
local answer = {after, bound}
for _, consumer in ipairs(consumers) do
  answer[#answer + 1] = consumer
  answer[#answer + 1] = counts[consumer]
end
return answer
