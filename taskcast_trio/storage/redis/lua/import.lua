-- Take in a task with its log as it is, where its id is free or may be overwritten.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 command to publish with, 4 '1' where it may
--   be overwritten, 5 place in the order, if it has none yet, 6 epoch, 7 revision, 8 next index,
--   9 '1' where it is an import, 10 former epochs, 11 highest index that was trimmed, 12 how many
--   events were, 13 no later event is older, 14 bytes of the rows' data, 15 status, 16 the status
--   where it is terminal, else '', 17 '' or '=' and the type, 18 body, 19 timers, 20 index, place
--   and time of each row in turn, 21 parts of series (parts/log.lua), 22 id and index of each event
--   whose id does not follow from its place, in turn, 23 fence or '', 24 publishers that count:
--   id, expected seq, and seq and place of its latest events in turn, of each; 25... rows
-- Result: ['done', whether it replaced another] or ['exists']
-- Use: keys reply head timers log announce publishers forget enter
local known = call('GET', STEP)
if known then
  return known
end
local id, body, first = ARGV[1], ARGV[18], 25
local replaces = call('EXISTS', HEAD) == 1
if replaces then
  if ARGV[4] ~= '1' then
    return refuse('exists')
  end
  forget(id)
else
  call('ZADD', INDEX, ARGV[5], id)
end
local head = {
  epoch = ARGV[6], rev = tonumber(ARGV[7]), next = tonumber(ARGV[8]), imp = ARGV[9],
  former = ARGV[10], trimmed = tonumber(ARGV[11]), trims = tonumber(ARGV[12]), ts = ARGV[13],
  ev = #ARGV - first + 1, by = ARGV[14], status = ARGV[15], ended = ARGV[16], type = ARGV[17],
  body = body, fence = ARGV[23],
}
enter(head)
set_timers(id, ARGV[19])
local places, parts, at = cmsgpack.unpack(ARGV[20]), cmsgpack.unpack(ARGV[21]), 1
for offset = 0, #ARGV - first do
  local index, place, ts = places[3 * offset + 1], places[3 * offset + 2], places[3 * offset + 3]
  local part = parts[at]
  if part and part[1] == offset then
    at = at + 1
    fold(part, index, place)
  end
  put(index, place, ts, ARGV[first + offset])
end
write_series()
local foreign = cmsgpack.unpack(ARGV[22])
for number = 1, #foreign, 2 do
  call('HSET', FOREIGN, foreign[number], foreign[number + 1])
end
for _, publisher in ipairs(cmsgpack.unpack(ARGV[24])) do
  local client, expected, places = unpack(publisher)
  call('HSET', publishers_key(id), client, expected)
  for at = 1, #places, 2 do
    call('HSET', seqs_key(id, client), places[at], places[at + 1])
  end
end
local kind = replaces and REPLACED or CHANGED
announce(id, ARGV[3], kind, 0, array(0), array(0), record(head, body))
return done(refuse('done', replaces))
