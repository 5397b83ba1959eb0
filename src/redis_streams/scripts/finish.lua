-- Completes tasks of one consumer: adds their messages, acknowledges, deletes, records the run time.
--
-- KEYS  stream, list of run times, hash of failures, then the streams and delivery records, referenced
--       by index
-- ARGV  group, consumer, number of tasks, lowest ID, highest ID, then for each task:
--       ID, delivery count, index of its record (0: none), run time in ms (-1: none),
--       number of failure strings, number of messages, number of message strings,
--       failure strings: field of the last failure, its value, then each counter to increase
--       message strings, for each message: index of its stream, number of field strings, fields
-- Returns for each task 'done', 'fenced', 'gone', or the error; with an error the task is still pending.
--
-- A script is not rolled back, so everything that can fail precedes the first acknowledgement: reading
-- the owners, then XADD, the only write that Redis may refuse (wrong type, out of memory, no
-- permission). The messages of a task are added all or none.
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

-- Returns nil if this consumer owns the entry with this delivery count, else the verdict.
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

-- Adds the messages that begin at ARGV[at]. If Redis refuses one, deletes those before it, which no client can have
-- read yet, and returns the error.
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
