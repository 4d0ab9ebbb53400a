-- Append events to the log of a task that has not ended, and announce them.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 command to publish with, 4 now,
--   5 idempotency key or '', 6 fingerprint, 7 when the key is forgotten, 8 epoch:revision of the
--   body that the caller has, 9 most events or '', 10 most bytes, 11 bytes of the rows' data,
--   12 parts of series (parts/log.lua), 13 timers to wake or '', 14 timers to hasten or '', 15 the
--   fence that the task has to have or '', 16 seqs (parts/publishers.lua) or '', 17... rows
-- Result: ['done', ts, moved, record], ['gone'], ['fenced'], ['ended', status],
--   ['full', what, stored], ['gap', offset, expected], ['stale', offset, expected],
--   ['known', record, events]: number, index, time, and entry or nil of each that was stored before,
--   ['reused'] or ['repeated', ts, moved, rows, record, aside]; moved is a list of offset and place in
--   turn
-- Use: keys reply head timers answers log announce publishers
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
local seqs, expected, after = ARGV[16] ~= '' and cmsgpack.unpack(ARGV[16])
if seqs then
  expected = expected_of(id, seqs)
  local before = {}
  for at = FIRST_SEQ, #seqs, EACH_SEQ do
    local client, seq = seqs[at + 1], seqs[at + 2]
    if seq < expected[client] then
      local place = call('HGET', seqs_key(id, client), seq)
      if not place then
        return refuse('stale', seqs[at], expected[client])
      end
      local index, ts = string.match(place, '^(%d+):(%d+)$')
      index = tonumber(index)
      before[#before + 1] = array(4) .. pack(seqs[at], index, tonumber(ts))
        .. (entry_at(index) or NIL)
    end
  end
  if #before > 0 then
    return array(3) .. pack('known') .. record_for(head, ARGV[8]) .. array(#before)
      .. table.concat(before)
  end
end
if ARGV[15] ~= '' and call('HGET', HEAD, 'fence') ~= ARGV[15] then
  return refuse('fenced')
end
if head.ended ~= '' then
  return refuse('ended', head.ended)
end
if seqs then
  local refusal
  after, refusal = counted_on(id, seqs, expected)
  if refusal then
    return refusal
  end
end
local first, number, size = 17, #ARGV - 16, tonumber(ARGV[11])
local parts = ARGV[12] == '' and {} or cmsgpack.unpack(ARGV[12])

if ARGV[9] ~= '' then
  local events, bytes = tonumber(ARGV[9]), tonumber(ARGV[10])
  if head.ev + number > events or head.by + size > bytes then
    local vacated, vacated_bytes, newest = 0, 0, {}
    for _, part in ipairs(parts) do
      if part[3] == 'l' then
        local old = state_of(part[2])
        local old_bytes = newest[part[2]] or (old and old[BYTES])
        if old_bytes then
          vacated, vacated_bytes = vacated + 1, vacated_bytes + old_bytes
        end
      end
      newest[part[2]] = part[6]
    end
    if head.ev + number - vacated > events then
      return refuse('full', 'events', head.ev)
    end
    if head.by + size - vacated_bytes > bytes then
      return refuse('full', 'bytes', head.by)
    end
  end
end

local ts, before = math.max(now, head.ts), head.next
local moved, replaceable = append(head, ts, parts, size, first)
if seqs then
  count(id, seqs, after, before, ts)
end
if ARGV[13] ~= '' then
  wake(id, ARGV[13])
end
if ARGV[14] ~= '' then
  hasten(id, ARGV[14])
end
if key ~= '' then
  keep_answer(head, key, print, tonumber(ARGV[7]), now, ts, moved, before, replaceable)
end
local body = head.size <= MAX_BODY and body_of(head.rev) or nil
local rows = array(number) .. table.concat(ARGV, '', first)
announce(id, ARGV[3], CHANGED, ts, moved, rows, record(head, body))
return done(array(4) .. pack('done', ts) .. moved .. record_for(head, ARGV[8]))
