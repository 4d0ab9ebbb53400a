-- ANSWERS: by idempotency key what a step answered, EXPIRIES when each is forgotten. Rows that a
-- later event may replace, and those that were trimmed, are kept with the answer, the others are
-- read from the log. Both keys go some time after the last answer is forgotten: no later step of a
-- task that has ended may come to prune them.
local SLACK = 60000

local function prune(now)
  local expired = call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, 16)
  if #expired > 0 then
    call('HDEL', ANSWERS, unpack(expired))
    call('ZREM', EXPIRIES, unpack(expired))
  end
end

local function keep_answer(head, key, print, expires, now, ts, moved, first, kept, aside)
  prune(now)
  local answer = pack({first, head.next, expires, print, head.rev, ts, moved, kept, aside or ''})
  call('HSET', ANSWERS, key, answer)
  call('ZADD', EXPIRIES, expires, key)
  local life = expires - now + SLACK
  if call('PTTL', EXPIRIES) < life then
    call('PEXPIRE', ANSWERS, life)
    call('PEXPIRE', EXPIRIES, life)
  end
end

-- Keep the rows of events that leave the log, by their index, with the answers that show them. There
-- may be many answers: of those that show none of them, only the beginning is read.
local function keep_rows(events, lowest, highest)
  local answers = call('HGETALL', ANSWERS)
  for at = 1, #answers, 2 do
    local _, first, next = cmsgpack.unpack_limit(answers[at + 1], 2, 1)
    if first <= highest and next > lowest then
      local answer, changed = cmsgpack.unpack(answers[at + 1]), false
      local kept = answer[8]
      for index = math.max(first, lowest), math.min(next - 1, highest) do
        if events[index] and not kept[index - first + 1] then
          kept[index - first + 1], changed = events[index].row, true
        end
      end
      if changed then
        call('HSET', ANSWERS, answers[at], pack(answer))
      end
    end
  end
end

-- What the key brought before; nil where it brought nothing that is still to be answered.
local function repeated(head, key, print, now)
  local packed = call('HGET', ANSWERS, key)
  if not packed then
    return nil
  end
  local first, next, expires, known, rev, ts, moved, kept, aside = unpack(cmsgpack.unpack(packed))
  if expires <= now then
    return nil
  end
  if known ~= print then
    return refuse('reused')
  end
  local rows = {}
  for at = 1, next - first do
    rows[at] = kept[at]
  end
  if next > first then
    for _, entry in ipairs(call('XRANGE', LOG, first + 1, next)) do
      local index = tonumber(string.match(entry[1], '^%d+')) - 1
      rows[index - first + 1] = entry[2][4]
    end
  end
  local then_ = {
    epoch = head.epoch, rev = rev, next = next, imp = head.imp, former = head.former,
    trimmed = head.trimmed, trims = head.trims,
  }
  return array(6) .. pack('repeated', ts) .. moved .. array(next - first) .. table.concat(rows)
    .. record(then_, body_of(rev)) .. pack(aside or '')
end
