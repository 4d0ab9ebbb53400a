-- Set a timer of a task, or clear it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 kind, 4 when it is due, or '' to clear it,
--   5 only where it is due then, or ''
-- Result: ['done'] or ['not']
-- Use: keys reply timers
local known = call('GET', STEP)
if known then
  return known
end
local id, kind = ARGV[1], ARGV[3]
if call('EXISTS', HEAD) == 0 then
  return refuse('not')
end
if ARGV[5] ~= '' then
  local due = call('ZSCORE', DUE .. kind, id)
  if not due or tonumber(due) ~= tonumber(ARGV[5]) then
    return refuse('not')
  end
end
set_timers(id, {kind, ARGV[4] ~= '' and ARGV[4]})
return done(refuse('done'))
