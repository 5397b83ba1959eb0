-- Stores a body while the lock of its response is held by this attempt.
--
-- KEYS  lock, its token, body
-- ARGV  consumer, token of this attempt, body, its life in s, database of the body
-- Gives 1 when it was stored, else 0. The database that is selected here is that of the script alone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SELECT', ARGV[5])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
return 1
