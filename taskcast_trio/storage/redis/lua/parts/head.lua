-- HEAD: epoch, rev, next, imp, former (MessagePack), ts (no later event is older), ev and by (how
-- many events are stored, and bytes of their data), trimmed and trims (see TaskRecord), end (the
-- status, where it is terminal), size (of the body), status, type, fence; and t:<kind> for each
-- timer. BODIES has the task by its revision.
local function load()
  local f = call('HMGET', HEAD, 'epoch', 'rev', 'next', 'imp', 'former', 'ts', 'ev', 'by', 'end',
    'size', 'trimmed', 'trims')
  if not f[1] then
    return nil
  end
  return {
    epoch = f[1], rev = tonumber(f[2]), next = tonumber(f[3]), imp = f[4], former = f[5],
    ts = tonumber(f[6]), ev = tonumber(f[7]), by = tonumber(f[8]), ended = f[9],
    size = tonumber(f[10]), trimmed = tonumber(f[11]), trims = tonumber(f[12]),
  }
end

local function record(head, body)
  return array(8) .. pack(head.epoch, head.rev, head.next, head.imp) .. head.former
    .. pack(head.trimmed, head.trims) .. (body or NIL)
end

local function body_of(revision)
  return call('HGET', BODIES, revision) or nil
end

-- The record, without the body of a revision that the caller has.
local function record_for(head, known)
  if known == head.epoch .. ':' .. head.rev then
    return record(head)
  end
  return record(head, body_of(head.rev))
end
