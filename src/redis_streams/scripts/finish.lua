-- Finishes tasks of one consumer: forward, acknowledge, delete, note the duration.
--
-- KEYS  stream, list of durations, then every stream and record the tasks name by index
-- ARGV  group, consumer, number of tasks, lowest id, highest id, then for each task:
--       id, deliveries, index of the destination (0: none), index of its record (0: none),
--       duration in ms (-1: none), number of field strings, the field strings
-- Gives for each task 'done', 'fenced', 'gone', or the error that kept it pending.
--
-- A script is never rolled back, so everything that can fail comes before the first
-- acknowledgement: reading who owns what, then XADD, which alone may be refused (wrong type, out of
-- memory). Nothing after it can fail.
local stream, durations = KEYS[1], KEYS[2]
local group, consumer, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local MOST_FIELDS = 7000

local mine = {}
if count > 1 then
  local held = redis.pcall('XPENDING', stream, group, ARGV[4], ARGV[5], 4 * count, consumer)
  if not held.err then
    for _, entry in ipairs(held) do mine[entry[1]] = entry[4] end
  end
end

-- nil when this consumer holds the entry with that many deliveries, else why not.
local function refusal(id, deliveries)
  local got = mine[id]
  if not got then
    local found = redis.pcall('XPENDING', stream, group, id, id, 1)
    if found.err then
      if string.sub(found.err, 1, 7) == 'NOGROUP' then return 'gone' end
      return found.err
    end
    if not found[1] then return 'gone' end
    if found[1][2] ~= consumer then return 'fenced' end
    got = found[1][4]
  end
  if got ~= deliveries then return 'fenced' end
end

local verdicts, finished, spent, records = {}, {}, {}, {}
local at = 6
for task = 1, count do
  local id, deliveries = ARGV[at], tonumber(ARGV[at + 1])
  local destination, record = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local duration, fields = ARGV[at + 4], tonumber(ARGV[at + 5])
  local first = at + 6
  at = first + fields
  local verdict = refusal(id, deliveries)
  if not verdict and destination > 0 then
    if fields > MOST_FIELDS then
      verdict = 'ERR a task of ' .. fields / 2 .. ' fields is too large to forward'
    else
      local added = redis.pcall('XADD', KEYS[destination], '*', unpack(ARGV, first, at - 1))
      verdict = type(added) == 'table' and added.err or nil
    end
  end
  if not verdict then
    verdict = 'done'
    mine[id] = -1
    finished[#finished + 1] = id
    if duration ~= '-1' then spent[#spent + 1] = duration end
    if record > 0 then records[#records + 1] = KEYS[record] end
  end
  verdicts[task] = verdict
end

if #finished > 0 then
  redis.call('XACK', stream, group, unpack(finished))
  local free = unneeded(stream, group, finished)
  if #free > 0 then redis.call('XDEL', stream, unpack(free)) end
  if #records > 0 then redis.call('DEL', unpack(records)) end
  if #spent > 0 then
    local length = redis.pcall('LPUSH', durations, unpack(spent))
    if type(length) == 'number' and length > 10000 then redis.call('LTRIM', durations, 0, 9999) end
  end
end
return verdicts
