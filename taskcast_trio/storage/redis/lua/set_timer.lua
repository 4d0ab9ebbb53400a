-- Set a timer of a task, or clear it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 the timer, 4 only where these timers are due
--   then, 5 only where this is the log's next index, or ''
-- Result: ['done'] or ['not']
-- Use: keys reply timers
local known = call('GET', STEP)
if known then
  return known
end
local id, next = ARGV[1], call('HGET', HEAD, 'next')
if not next or (ARGV[5] ~= '' and ARGV[5] ~= next) or not are_due(id, ARGV[4]) then
  return refuse('not')
end
set_timers(id, ARGV[3])
return done(refuse('done'))
