-- Ends a worker's presence: the heartbeat goes and the marker stands, at the same moment.
--
-- KEYS  heartbeat, marker
-- ARGV  the marker's JSON, its life in seconds
--
-- The deletion comes first: it makes the room that a Redis without memory needs for the marker.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
return 'left'
