-- Sets each stream's task durations aside as a batch, and notes the batch first: what is set aside
-- is always found again.
-- KEYS: the index of batches, then each stream's list. ARGV: the most batches there may be, then for
-- each list its batch's id, its batch's key, and the stream.
-- Answers how many were set aside, or -1 if there are too many batches already.
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
