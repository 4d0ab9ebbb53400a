-- How many tasks there are.
-- KEYS: the order of each bucket
-- ARGV: none
-- Result: the number
local count = 0
for _, key in ipairs(KEYS) do
  count = count + redis.call('ZCARD', key)
end
return count
