-- The keys of one task, the same for every script that has one; all have its bucket's hash tag.
-- TEXT and DUE are what the names of further keys of the bucket begin with: the text of a series
-- is at TEXT .. series, the timers of a kind at DUE .. kind.
local HEAD, BODIES, LOG, MOVED, SERIES, FOREIGN, ANSWERS, EXPIRIES, NOTES, INDEX, TEXT, DUE,
  CHANNEL, STEP = unpack(KEYS)
