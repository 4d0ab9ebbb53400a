-- What an idempotency key brought before.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 now, 2 idempotency key, 3 fingerprint
-- Result: ['none'], ['reused'] or ['repeated', ts, moved, rows, record, aside]
-- Use: keys reply head answers
local head = load()
return head and repeated(head, ARGV[2], ARGV[3], tonumber(ARGV[1])) or refuse('none')
