-- Releases the lock of a response that is still held by this attempt, and says so to those who wait.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt
-- Gives 1 when it was, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('PUBLISH', KEYS[1], 'released')
return 1
