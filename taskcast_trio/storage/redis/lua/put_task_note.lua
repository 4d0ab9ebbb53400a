-- Store a small value of a task, or remove it, and set timers.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 epoch, 4 name, 5 '' or '=' and the value,
--   6 timers, 7 only where these timers are due then
-- Result: ['done'] or ['not']
-- Use: keys reply timers
local known = call('GET', STEP)
if known then
  return known
end
if call('HGET', HEAD, 'epoch') ~= ARGV[3] or not are_due(ARGV[1], ARGV[7]) then
  return refuse('not')
end
if ARGV[5] == '' then
  call('HDEL', NOTES, ARGV[4])
else
  call('HSET', NOTES, ARGV[4], string.sub(ARGV[5], 2))
end
set_timers(ARGV[1], ARGV[6])
return done(refuse('done'))
