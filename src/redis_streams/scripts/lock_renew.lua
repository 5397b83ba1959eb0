-- Prolongs the lock of a response that is still held by this attempt.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt, life in ms
-- Gives 1 when it is, else 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
