-- Counts the phantom ids in a part of a group's pending list. Changes nothing.
--
-- KEYS  stream
-- ARGV  group, id behind which to begin ('-': at the beginning), most rows, most entries, most bytes
-- Returns {id behind which to go on ('' at the end), lower bound for the whole group,
--          then consumer and count for each consumer that holds phantom ids}.
--
-- The lower bound needs no walk: no more pending ids than entries can have one. (The lag would make it
-- closer, and Redis may report it too high.)
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
