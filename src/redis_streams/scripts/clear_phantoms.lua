-- Acknowledges the phantom ids in a part of a group's pending list: ids whose entry is no longer in the
-- stream. That the entry is gone is checked in this same script, so no existing entry is acknowledged.
--
-- KEYS  stream
-- ARGV  group, id behind which to begin ('-': at the beginning), most rows, most entries, most bytes,
--       prefix of the consumers' heartbeat keys, prefix of the delivery records,
--       least idle ms without a heartbeat, least idle ms with tasks in flight, life of a heartbeat in ms,
--       slack in ms between a delivery and its being counted as in flight
-- Returns {id behind which to go on ('' at the end), acknowledged, kept since they may be in flight}.
--
-- A worker of this project's library refuses to finish a task that is no longer pending, so an id that
-- it may be working on is kept. Workers whose heartbeat has no `in_flight` make no such check: for them
-- the id is of no use.
local stream, group = KEYS[1], ARGV[1]
local heartbeats, records = ARGV[6], ARGV[7]
local least_absent, least_busy = tonumber(ARGV[8]), tonumber(ARGV[9])
local heartbeat_life, slack = tonumber(ARGV[10]), tonumber(ARGV[11])

-- For how long an id of this consumer must have been idle to be acknowledged.
local least_idle = {}
local function least_idle_of(consumer)
  if not least_idle[consumer] then
    local key = heartbeats .. consumer
    local value = redis.pcall('GET', key)
    local least = least_absent
    if type(value) == 'string' then
      local readable, beat = pcall(cjson.decode, value)
      local in_flight = readable and type(beat) == 'table' and tonumber(beat.in_flight) or nil
      if not in_flight then
        least = 0
      elseif in_flight + (tonumber(beat.waiting) or 0) > 0 then
        least = least_busy
      else
        -- Written after the delivery, it proves that the consumer does not work on it.
        least = math.max(0, heartbeat_life - redis.call('PTTL', key)) + slack
      end
    end
    least_idle[consumer] = least
  end
  return least_idle[consumer]
end

local phantoms, kept = {}, 0
local after, err = walk_pending(stream, group, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]),
  function(row, is_phantom)
    if not is_phantom then return end
    if row[3] >= least_idle_of(row[2]) then
      phantoms[#phantoms + 1] = row[1]
    else
      kept = kept + 1
    end
  end)
if not after then
  if string.sub(err, 1, 7) == 'NOGROUP' then return {'', 0, 0} end
  return redis.error_reply(err)
end
if #phantoms > 0 then
  redis.call('XACK', stream, group, unpack(phantoms))
  for _, id in ipairs(phantoms) do redis.pcall('DEL', records .. id) end
end
return {after, #phantoms, kept}
