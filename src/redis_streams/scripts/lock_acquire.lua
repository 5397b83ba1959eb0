-- Acquires the lock of a response, unless it is held.
--
-- KEYS  lock, its token
-- ARGV  consumer, token of this attempt, life in ms
-- Gives 1 when it is held by this attempt now, else 0. Safe to repeat.
--
-- Every process of the fleet knows the lock alone. The token beside it tells attempts of one consumer
-- apart, which all write the same value into the lock.
local holder = redis.call('GET', KEYS[1])
if holder and (holder ~= ARGV[1] or redis.call('GET', KEYS[2]) ~= ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
