-- Releases the lock of a response if this attempt holds it, and publishes the release.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt
-- Returns 1 if this attempt held the lock, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('PUBLISH', KEYS[1], 'released')
return 1
