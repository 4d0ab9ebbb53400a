-- Publishers that count their events. The key of all of a task has, by the id of each, the seq that is
-- expected next; one for each has the index and the time of its latest events, by seq. Their names
-- begin as those of all keys of the bucket do.
local function publishers_key(id)
  return string.sub(DUE, 1, -5) .. 'publishers:' .. id
end

local function seqs_key(id, client)
  return string.sub(DUE, 1, -5) .. 'seqs:' .. #id .. ':' .. id .. ':' .. client
end

-- Seqs come as a list: how many of each publisher are kept, the most publishers, then in turn the
-- number of the event, its publisher, and its seq.
local FIRST_SEQ, EACH_SEQ = 3, 3

-- What is expected of each publisher that seqs name.
local function expected_of(id, seqs)
  local expected, key = {}, publishers_key(id)
  for at = FIRST_SEQ, #seqs, EACH_SEQ do
    local client = seqs[at + 1]
    if not expected[client] then
      expected[client] = tonumber(call('HGET', key, client) or 0)
    end
  end
  return expected
end

-- What is expected after seqs, or a refusal.
local function counted_on(id, seqs, expected)
  local after, new = {}, 0
  for at = FIRST_SEQ, #seqs, EACH_SEQ do
    local client, seq = seqs[at + 1], seqs[at + 2]
    local due = after[client]
    if not due then
      due = expected[client]
      if due == 0 then
        new = new + 1
      end
    end
    if seq ~= due then
      return nil, refuse('gap', seqs[at], due)
    end
    after[client] = due + 1
  end
  if new > 0 then
    local stored = call('HLEN', publishers_key(id))
    if stored + new > seqs[2] then
      return nil, refuse('full', 'publishers', stored)
    end
  end
  return after
end

local function count(id, seqs, after, first, ts)
  for at = FIRST_SEQ, #seqs, EACH_SEQ do
    local key, seq = seqs_key(id, seqs[at + 1]), seqs[at + 2]
    call('HSET', key, seq, (first + seqs[at]) .. ':' .. ts)
    call('HDEL', key, seq - seqs[1])
  end
  for client, due in pairs(after) do
    call('HSET', publishers_key(id), client, due)
  end
end

local function forget_publishers(id)
  local key = publishers_key(id)
  for _, client in ipairs(call('HKEYS', key)) do
    call('UNLINK', seqs_key(id, client))
  end
  call('UNLINK', key)
end
