-- Store a value in a table, or remove it, where it is as it was known.
-- KEYS: 1 the table
-- ARGV: 1 key, 2 '' or '=' and the value that is known, 3 '' or '=' and the value to be stored,
--   4 how many rows may be there for a new one to be stored no more, or ''
-- Result: the value that is there then, or nil
local now = redis.call('HGET', KEYS[1], ARGV[1])
if (now and '=' .. now or '') ~= ARGV[2] then
  return now
end
if not now and ARGV[4] ~= '' and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  return false
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
  return false
end
local value = string.sub(ARGV[3], 2)
redis.call('HSET', KEYS[1], ARGV[1], value)
return value
