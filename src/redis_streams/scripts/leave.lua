-- Deletes the heartbeat and writes the shutdown marker, atomically.
--
-- KEYS  heartbeat, marker
-- ARGV  JSON of the marker, TTL in s
--
-- The heartbeat is deleted first: if Redis is out of memory, this frees the memory for the marker.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 'left'
