-- The next place in the order of creation. A counter that was lost, of a store that may not have
-- lost its other buckets, goes on from the time, which is ahead of all that it has counted.
-- KEYS: 1 the counter
-- ARGV: 1 the time (Unix, microseconds)
-- Result: the number
local number = redis.call('INCR', KEYS[1])
if number < 1e12 then
  number = tonumber(ARGV[1])
  redis.call('SET', KEYS[1], ARGV[1])
end
return number
