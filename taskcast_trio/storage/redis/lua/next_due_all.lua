-- When the earliest timer of a kind is due.
-- KEYS: the timers of the kind in each bucket
-- ARGV: none
-- Result: the time, or nil
local earliest
for _, key in ipairs(KEYS) do
  local first = tonumber(redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2])
  if first and (not earliest or first < earliest) then
    earliest = first
  end
end
return earliest
