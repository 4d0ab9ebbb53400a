-- Replace the task where it has a revision and epoch still, append events, and announce it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 command to publish with, 4 now,
--   5 idempotency key or '', 6 fingerprint, 7 when the key is forgotten, 8 revision, 9 epoch,
--   10 no event is older, 11 bytes of the rows' data, 12 parts of series (parts/log.lua),
--   13 timers, 14 timers to hasten, 15 status, 16 the status where it is terminal, else '',
--   17 '' or '=' and the type, 18 body, 19 fence or '', 20 what a repeat tells, 21... rows
-- Result: ['done', ts, moved, record without body], ['gone'], ['conflict'], ['reused'] or
--   ['repeated', ts, moved, rows, record, aside]
-- Use: keys reply head timers answers log announce
local known = call('GET', STEP)
if known then
  return known
end
local id, now, key, print = ARGV[1], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local head = load()
if not head then
  return refuse('gone')
end
if key ~= '' then
  local answer = repeated(head, key, print, now)
  if answer then
    return answer
  end
end
if head.rev ~= tonumber(ARGV[8]) or head.epoch ~= ARGV[9] then
  return refuse('conflict')
end
local body, first, before = ARGV[18], 21, head.next
local ts = math.max(now, tonumber(ARGV[10]), head.ts)
head.rev = head.rev + 1
-- Older bodies stay for as long as a key may have to repeat them.
prune(now)
if call('ZCARD', EXPIRIES) == 0 then
  call('DEL', BODIES)
end
call('HSET', BODIES, head.rev, body)
call('HSET', HEAD, 'rev', head.rev, 'size', #body, 'status', ARGV[15], 'end', ARGV[16])
if ARGV[19] ~= '' then
  call('HSET', HEAD, 'fence', ARGV[19])
end
if ARGV[17] == '' then
  call('HDEL', HEAD, 'type')
else
  call('HSET', HEAD, 'type', string.sub(ARGV[17], 2))
end
local parts = ARGV[12] == '' and {} or cmsgpack.unpack(ARGV[12])
local moved, replaceable = append(head, ts, parts, tonumber(ARGV[11]), first)
set_timers(id, ARGV[13])
hasten(id, ARGV[14])
if key ~= '' then
  keep_answer(head, key, print, tonumber(ARGV[7]), now, ts, moved, before, replaceable,
    ARGV[20])
end
local rows = array(head.next - before) .. table.concat(ARGV, '', first)
announce(id, ARGV[3], CHANGED, ts, moved, rows, record(head, body))
return done(array(4) .. pack('done', ts) .. moved .. record(head))
