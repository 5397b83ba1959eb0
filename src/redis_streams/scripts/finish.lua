-- Completes tasks of one consumer: add what follows, acknowledge, delete, note the duration.
--
-- KEYS  stream, list of durations, hash of failures, then every stream and record that the tasks
--       name by index
-- ARGV  group, consumer, number of tasks, lowest id, highest id, then for each task:
--       id, deliveries, index of its record (0: none), duration in ms (-1: none),
--       number of failure strings, number of messages, number of message strings,
--       failure strings: field of the last failure, its value, then each counter to raise
--       message strings, for each message: index of its stream, number of field strings, fields
-- Returns for each task 'done', 'fenced', 'gone', or the error that kept it pending.
--
-- A script is never rolled back, so everything that can fail comes before the first
-- acknowledgement: reading who owns what, then XADD, which alone may be refused (wrong type, out of
-- memory, no permission). A task's messages are all added or none. Nothing after it can fail.
local stream, durations, failures = KEYS[1], KEYS[2], KEYS[3]
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

-- Adds the messages that begin at ARGV[at]; on the first refusal takes back those before it, which
-- nobody can have read, and returns the error.
local function add(at, messages)
  local added = {}
  for _ = 1, messages do
    local key, fields = KEYS[tonumber(ARGV[at])], tonumber(ARGV[at + 1])
    local first = at + 2
    at = first + fields
    local created = messages > 1 and redis.call('EXISTS', key) == 0
    local id
    if fields > MOST_FIELDS then
      id = {err = 'ERR a task of ' .. fields / 2 .. ' fields is too large to forward'}
    else
      id = redis.pcall('XADD', key, '*', unpack(ARGV, first, at - 1))
    end
    if type(id) == 'table' then
      for before = #added, 1, -1 do
        redis.call('XDEL', added[before][1], added[before][2])
        if added[before][3] then redis.call('DEL', added[before][1]) end
      end
      return id.err
    end
    added[#added + 1] = {key, id, created}
  end
end

local verdicts, finished, spent, records, raised, last = {}, {}, {}, {}, {}, {}
local at = 6
for task = 1, count do
  local id, deliveries = ARGV[at], tonumber(ARGV[at + 1])
  local record, duration = tonumber(ARGV[at + 2]), ARGV[at + 3]
  local failed, messages, strings = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local failure = at + 7
  local first = failure + failed
  at = first + strings
  local verdict = refusal(id, deliveries) or add(first, messages)
  if not verdict then
    verdict = 'done'
    mine[id] = -1
    finished[#finished + 1] = id
    if duration ~= '-1' then spent[#spent + 1] = duration end
    if record > 0 then records[#records + 1] = KEYS[record] end
    if failed > 0 then
      last = {ARGV[failure], ARGV[failure + 1]}
      for counter = failure + 2, first - 1 do raised[#raised + 1] = ARGV[counter] end
    end
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
  for _, counter in ipairs(raised) do redis.pcall('HINCRBY', failures, counter, 1) end
  if #last > 0 then redis.pcall('HSET', failures, unpack(last)) end
end
return verdicts
