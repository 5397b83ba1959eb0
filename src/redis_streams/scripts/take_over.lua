-- Copies the state of the older monitor to the keys of this monitor, once. The older monitor's keys are not changed.
--
-- KEYS  mark of the migration; then pairs of own and older key: known types, alerts, two times of retention runs
-- ARGV  prefixes of the worker states, own and older; maximum number of alerts
-- Returns the number of migrated types, or -1 if the migration was done before.
if redis.call('EXISTS', KEYS[1]) == 1 then
    return -1
end
local known = redis.call('SMEMBERS', KEYS[3])
for _, name in ipairs(known) do
    redis.call('SADD', KEYS[2], name)
    local state = redis.call('GET', ARGV[2] .. name)
    if state then
        redis.call('SETNX', ARGV[1] .. name, state)
    end
end
if redis.call('EXISTS', KEYS[4]) == 0 then
    for _, alert in ipairs(redis.call('LRANGE', KEYS[5], 0, ARGV[3] - 1)) do
        redis.call('RPUSH', KEYS[4], alert)
    end
end
for i = 6, 8, 2 do
    local swept = redis.call('GET', KEYS[i + 1])
    if swept then
        redis.call('SETNX', KEYS[i], swept)
    end
end
local time = redis.call('TIME')
redis.call('SET', KEYS[1], time[1])
return #known
