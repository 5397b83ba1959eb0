-- Removes a consumer that has neither a heartbeat nor anything pending.
--
-- KEYS  stream, the consumer's heartbeat
-- ARGV  group, consumer
-- Gives 'removed', 'alive', 'busy' or 'gone'.
if redis.call('EXISTS', KEYS[2]) == 1 then return 'alive' end
local held = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if held.err then return 'gone' end
if #held > 0 then return 'busy' end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 'removed'
