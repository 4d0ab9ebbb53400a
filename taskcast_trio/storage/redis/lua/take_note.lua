-- Read and remove a note.
-- KEYS: 1 the note, 2 under which the reply is remembered
-- ARGV: 1 how long a reply is remembered (ms)
-- Result: what was stored, or nil
local known = redis.call('GET', KEYS[2])
if known then
  return known
end
local value = redis.call('GET', KEYS[1])
if value then
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[2], value, 'PX', ARGV[1])
end
return value
