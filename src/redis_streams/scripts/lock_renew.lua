-- Extends the lock of a response if this attempt holds it.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt, TTL in ms
-- Returns 1 if this attempt holds the lock, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
