-- Keeps a failed task pending for its consumer, to be retried. Idempotent.
--
-- KEYS  stream, delivery record of the task
-- ARGV  group, consumer, ID, delivery count, 1 if the next run counts as a delivery (else 0), reason,
--       TTL of a record in ms
-- Returns the new delivery count, 'fenced' or 'gone'.
local stream, record = KEYS[1], KEYS[2]
local group, consumer, id, deliveries = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local next_count = deliveries + tonumber(ARGV[5])

local found = redis.pcall('XPENDING', stream, group, id, id, 1)
local entry = not found.err and found[1]
if not entry then return 'gone' end
if entry[2] ~= consumer or entry[4] ~= deliveries and entry[4] ~= next_count then return 'fenced' end
-- XCLAIM would remove the pending ID of a deleted entry, whose task can still run and be completed.
if #redis.call('XRANGE', stream, id, id) == 0 then return deliveries end
redis.call('XCLAIM', stream, group, consumer, 0, id, 'IDLE', 0, 'RETRYCOUNT', next_count, 'JUSTID')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.pcall('HSETNX', record, 'first_ms', string.format('%.0f', now - entry[3]))
redis.pcall('HSET', record, 'error', ARGV[6])
redis.pcall('PEXPIRE', record, ARGV[7])
return next_count
