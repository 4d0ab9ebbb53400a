-- LOG is a stream: the event at an index has the id <index + 1>-<place>, its time t and its row r.
-- MOVED has, by place, the indexes of events that stand in the place of others. SERIES has the
-- state of each series, see fold below; TEXT .. series the running text.
local states, texts = {}, {}
local INDEX_, PLACE, BYTES, KEY, TEXTUAL, JOINED, MIXED, START, COUNT, TIME, ROW =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11

local function state_of(series)
  local state = states[series]
  if state == nil then
    local packed = call('HGET', SERIES, series)
    state = packed and cmsgpack.unpack(packed) or false
    states[series] = state
  end
  return state
end

-- Bring a series up to its event at index. A part says of the event: its offset, series, mode (a
-- for accumulate, l for latest), the key of the text in its data, that text or false, its bytes.
-- A piece is joined where the event before it has a text at the same key. Where the keys differ,
-- only who can read the data knows the value: it is mixed until the series starts again. The state
-- counts the stored events of the series; where the newest was trimmed, it has its time and row.
local function fold(part, index, place)
  local series, mode, key, piece = part[2], part[3], part[4], part[5]
  local old = state_of(series)
  local count = old and old[COUNT] + 1 or 1
  local text = texts[series]
  if text == nil then
    text = {fresh = false}
    texts[series] = text
  end
  if old and mode == 'a' and piece and (old[MIXED] or old[KEY] ~= key) then
    states[series] = {index, place, part[6], key, false, false, true, old[START], count}
    texts[series] = {fresh = true}
  elseif old and mode == 'a' and piece and old[TEXTUAL] then
    text[#text + 1] = piece
    states[series] = {index, place, part[6], key, true, true, false, old[START], count}
  else
    texts[series] = {fresh = true, piece or nil}
    local textual = piece and true or false
    states[series] = {index, place, part[6], key, textual, false, false, index, count}
  end
end

local function write_series()
  for series, state in pairs(states) do
    if state then
      call('HSET', SERIES, series, pack(state))
    end
  end
  for series, text in pairs(texts) do
    if text.fresh then
      call('DEL', TEXT .. series)
    end
    if #text > 0 then
      call('APPEND', TEXT .. series, table.concat(text))
    end
  end
end

-- Take out the newest event of a series; false where it was trimmed.
local function vacate(head, old)
  if call('XDEL', LOG, (old[INDEX_] + 1) .. '-' .. old[PLACE]) == 0 then
    return false
  end
  old[COUNT] = old[COUNT] - 1
  if old[PLACE] ~= old[INDEX_] then
    call('ZREM', MOVED, old[INDEX_])
  end
  head.ev, head.by = head.ev - 1, head.by - old[BYTES]
  return true
end

local function put(index, place, ts, row)
  call('XADD', LOG, (index + 1) .. '-' .. place, 't', ts, 'r', row)
  if place ~= index then
    call('ZADD', MOVED, place, index)
  end
end

-- Append rows (ARGV from first_row on) and write the head; what follows from it is the list of
-- those that took another's place (offset and place in turn), and the rows that may be replaced.
local function append(head, ts, parts, size, first_row)
  local first, moved, replaceable = head.next, {}, {}
  local at = 1
  for offset = 0, #ARGV - first_row do
    local index, row = first + offset, ARGV[first_row + offset]
    local place, part = index, parts[at]
    if part and part[1] == offset then
      at = at + 1
      replaceable[offset + 1] = row
      local old = part[3] == 'l' and state_of(part[2])
      if old and vacate(head, old) then
        place = old[PLACE]
        moved[#moved + 1] = offset
        moved[#moved + 1] = place
      end
      fold(part, index, place)
    end
    put(index, place, ts, row)
    head.ev = head.ev + 1
  end
  head.next, head.by, head.ts = first + #ARGV - first_row + 1, head.by + size, ts
  write_series()
  call('HSET', HEAD, 'next', head.next, 'ts', ts, 'ev', head.ev, 'by', head.by)
  return list(moved), replaceable
end

local function entry(found)
  local number, place = string.match(found[1], '^(%d+)-(%d+)$')
  return array(4) .. pack(tonumber(number) - 1, tonumber(place), tonumber(found[2][2]))
    .. found[2][4]
end

local function entry_at(index)
  local found = call('XRANGE', LOG, index + 1, index + 1)
  return found[1] and entry(found[1]) or nil
end
