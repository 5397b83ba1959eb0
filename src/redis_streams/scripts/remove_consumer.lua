-- Deletes a consumer without heartbeat and pending entries.
--
-- KEYS  stream, heartbeat of the consumer
-- ARGV  group, consumer
-- Returns 'removed', 'alive', 'busy' or 'gone'.
if redis.call('EXISTS', KEYS[2]) == 1 then return 'alive' end
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if held.err then return 'gone' end
if #held > 0 then return 'busy' end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 'removed'
