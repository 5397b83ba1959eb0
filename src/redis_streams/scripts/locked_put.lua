-- Stores a body if this attempt holds the lock of its response.
--
-- KEYS  lock, its token, body
-- ARGV  consumer, token of this attempt, body, TTL of the body in s, database of the body
-- Returns 1 if the body was stored, else 0. SELECT applies only within the script.
if redis.call('GET', KEYS[1]) ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2] then return 0 end
redis.call('SELECT', ARGV[5])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
return 1
