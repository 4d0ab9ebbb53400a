-- Put off those of some timers that are still due when they were.
-- KEYS: 1 the timers of a kind in a bucket, 2 under which the reply is remembered
-- ARGV: 1 until when, 2 how long a reply is remembered (ms), 3 task and due time in turn
-- Result: a list of the tasks
-- Use: reply
local STEP = KEYS[2]
local known = call('GET', STEP)
if known then
  return known
end
local wanted, taken = cmsgpack.unpack(ARGV[3]), {}
for at = 1, #wanted, 2 do
  local due = call('ZSCORE', KEYS[1], wanted[at])
  if due and tonumber(due) == wanted[at + 1] then
    call('ZADD', KEYS[1], ARGV[1], wanted[at])
    taken[#taken + 1] = wanted[at]
  end
end
local reply = list(taken)
call('SET', STEP, reply, 'PX', ARGV[2])
return reply
