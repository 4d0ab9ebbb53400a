-- Create a task where its id is free, with an empty log.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 command to publish with, 4 now,
--   5 idempotency key or '', 6 fingerprint, 7 when the key is forgotten, 8 place in the order,
--   9 epoch, 10 created_at, 11 status, 12 the status where it is terminal, else '', 13 '' or '='
--   and the type, 14 body, 15 timers, 16 fence or ''
-- Result: ['done'], ['exists'], ['reused'] or
--   ['repeated', ts, moved, rows, record, aside]
-- Use: keys reply head timers answers announce enter
local known = call('GET', STEP)
if known then
  return known
end
local id, now, key, print = ARGV[1], tonumber(ARGV[4]), ARGV[5], ARGV[6]
local head = load()
if head then
  return key ~= '' and repeated(head, key, print, now) or refuse('exists')
end
local body = ARGV[14]
head = {
  epoch = ARGV[9], rev = 0, next = 0, imp = '0', former = array(0), ts = ARGV[10], ev = 0, by = 0,
  trimmed = -1, trims = 0, ended = ARGV[12], status = ARGV[11], type = ARGV[13], body = body,
  fence = ARGV[16],
}
enter(head)
call('ZADD', INDEX, ARGV[8], id)
set_timers(id, ARGV[15])
if key ~= '' then
  keep_answer(head, key, print, tonumber(ARGV[7]), now, 0, array(0), 0, {})
end
announce(id, ARGV[3], CREATED, 0, array(0), array(0), record(head, body))
return done(refuse('done'))
