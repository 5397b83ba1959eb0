-- Acknowledges phantom IDs in a part of a group's pending list: IDs whose entry was deleted from the
-- stream. The deletion is checked in this script, so existing entries are never acknowledged.
--
-- KEYS  stream
-- ARGV  group, ID after which to start ('-': from the beginning), maximum rows, entries and bytes to read,
--       prefix of the consumers' heartbeat keys, prefix of the delivery records, minimum idle time in ms of
--       a consumer without heartbeat and of one with tasks in flight, TTL of a heartbeat in ms, maximum
--       time in ms between a delivery and the update of `in_flight`
-- Returns {ID after which to continue ('' at the end), acknowledged, kept because they may be in flight}.
--
-- Workers of this library refuse to finish a task that is not pending, so IDs that they may be working
-- on are kept. Workers without `in_flight` in their heartbeat do not check this and do not need the ID.
local stream, group = KEYS[1], ARGV[1]
local heartbeats, records = ARGV[6], ARGV[7]
local least_absent, least_busy = tonumber(ARGV[8]), tonumber(ARGV[9])
local heartbeat_life, slack = tonumber(ARGV[10]), tonumber(ARGV[11])

-- Minimum idle time of a pending ID of this consumer to be acknowledged.
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
        -- A heartbeat written after the delivery proves that the consumer is not working on the ID.
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
