-- Remove a task with all that is its own, and announce it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 command to publish with,
--   4 only where the log has this epoch, or ''
-- Result: ['done'] or ['gone']
-- Use: keys reply head announce publishers forget
local known = call('GET', STEP)
if known then
  return known
end
local id, head = ARGV[1], load()
if not head or (ARGV[4] ~= '' and ARGV[4] ~= head.epoch) then
  return refuse('gone')
end
local last = record(head, body_of(head.rev))
forget(id)
call('ZREM', INDEX, id)
announce(id, ARGV[3], DELETED, 0, array(0), array(0), last)
return done(refuse('done'))
