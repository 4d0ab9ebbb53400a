-- Take some of what may be taken within one second, counted from the first one who asks.
-- KEYS: 1 the count
-- ARGV: 1 how many are wanted, 2 how many there are in a second
-- Result: how many were granted
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
local granted = math.max(math.min(tonumber(ARGV[1]), tonumber(ARGV[2]) - used), 0)
if granted > 0 then
  redis.call('INCRBY', KEYS[1], granted)
  if used == 0 then
    redis.call('PEXPIRE', KEYS[1], 1000)
  end
end
return granted
