-- Moves the task durations of each stream to a batch. The batch is added to the index first, so that a
-- moved list is always found again.
--
-- KEYS  index of batches, then the list of each stream
-- ARGV  maximum number of batches, then for each list: ID of its batch, key of its batch, stream
-- Returns the number of moved lists, or -1 if there are too many batches.
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1]) then
    return -1
end
local time = redis.call('TIME')
local milliseconds = time[1] * 1000 + math.floor(time[2] / 1000)
local drained = 0
for i = 2, #KEYS do
    local a = (i - 2) * 3 + 2
    if redis.call('TYPE', KEYS[i]).ok == 'list' then
        redis.call('HSET', KEYS[1], ARGV[a], string.format('%.0f', milliseconds) .. ' ' .. ARGV[a + 2])
        redis.call('RENAME', KEYS[i], ARGV[a + 1])
        drained = drained + 1
    end
end
return drained
