-- Removes events from the head of the spool KEYS[1] while they are among ARGV. Returns the number removed.
local stored = {}
for _, event in ipairs(ARGV) do
    stored[event] = true
end
local removed = 0
while true do
    local front = redis.call('LINDEX', KEYS[1], 0)
    if not front or not stored[front] then
        return removed
    end
    redis.call('LPOP', KEYS[1])
    removed = removed + 1
end
