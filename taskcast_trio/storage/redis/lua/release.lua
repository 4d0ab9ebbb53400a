-- Forget a task that has ended and that another store has whole; nobody is told.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 epoch, 4 revision, 5 now,
--   6 only where it has none of these timers: their kinds
-- Result: ['done'] or ['kept']
-- Use: keys reply head timers publishers forget
local known = call('GET', STEP)
if known then
  return known
end
local id, head = ARGV[1], load()
if not head or head.ended == '' or head.epoch ~= ARGV[3] or head.rev ~= tonumber(ARGV[4])
  or call('ZCOUNT', EXPIRIES, '(' .. ARGV[5], '+inf') > 0 then
  return refuse('kept')
end
for _, kind in ipairs(cmsgpack.unpack(ARGV[6])) do
  if due_at(id, kind) then
    return refuse('kept')
  end
end
forget(id)
call('ZREM', INDEX, id)
return done(refuse('done'))
