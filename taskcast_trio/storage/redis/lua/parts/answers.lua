-- ANSWERS: by idempotency key what a step answered, EXPIRIES when each is forgotten. Rows that a
-- later event may replace are kept with the answer, the others are read from the log.
local function prune(now)
  local expired = call('ZRANGEBYSCORE', EXPIRIES, '-inf', now, 'LIMIT', 0, 16)
  if #expired > 0 then
    call('HDEL', ANSWERS, unpack(expired))
    call('ZREM', EXPIRIES, unpack(expired))
  end
end

local function keep_answer(head, key, print, expires, now, ts, moved, first, replaceable)
  prune(now)
  local answer = pack({expires, print, head.rev, head.next, ts, moved, first, replaceable})
  call('HSET', ANSWERS, key, answer)
  call('ZADD', EXPIRIES, expires, key)
end

-- What the key brought before; nil where it brought nothing that is still to be answered.
local function repeated(head, key, print, now)
  local packed = call('HGET', ANSWERS, key)
  if not packed then
    return nil
  end
  local expires, known, rev, next, ts, moved, first, replaceable = unpack(cmsgpack.unpack(packed))
  if expires <= now then
    return nil
  end
  if known ~= print then
    return refuse('reused')
  end
  local rows = {}
  for at = 1, next - first do
    rows[at] = replaceable[at]
  end
  if next > first then
    for _, entry in ipairs(call('XRANGE', LOG, first + 1, next)) do
      local index = tonumber(string.match(entry[1], '^%d+')) - 1
      rows[index - first + 1] = entry[2][4]
    end
  end
  local then_ = {epoch = head.epoch, rev = rev, next = next, imp = head.imp, former = head.former}
  return array(5) .. pack('repeated', ts) .. moved .. array(next - first) .. table.concat(rows)
    .. record(then_, body_of(rev))
end
