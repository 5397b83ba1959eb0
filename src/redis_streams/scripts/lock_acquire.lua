-- Acquires the lock of a response unless it is taken. Idempotent.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt, TTL in ms
-- Returns 1 if this attempt holds the lock, else 0.
--
-- Python workers only use the lock. The token distinguishes attempts of one consumer, which all write the
-- same value into the lock.
local holder = redis.call('GET', KEYS[1])
if holder and (holder ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
