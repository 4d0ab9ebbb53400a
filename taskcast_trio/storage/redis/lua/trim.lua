-- Remove events of a task that has ended. The value of a series stays until the last of its events
-- goes: where its newest does, that is written down; where it is mixed, the caller must tell it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 id, 2 how long a reply is remembered (ms), 3 epoch, 4 indexes, ascending, 5 values of
--   mixed series: the series, index and time of its newest event, and row of the value, in turn
-- Result: ['done', how many there were] or ['mixed']: values that were not told are needed
-- Use: keys reply head answers log row
local known = call('GET', STEP)
if known then
  return known
end
local head = load()
if not head or head.epoch ~= ARGV[3] or head.ended == '' then
  return refuse('done', 0)
end
local found, gone = {}, {}
local wanted, at = cmsgpack.unpack(ARGV[4]), 1
while wanted[at] and wanted[at] < head.next do
  local first = wanted[at]
  while wanted[at + 1] == wanted[at] + 1 do
    at = at + 1
  end
  for _, one in ipairs(call('XRANGE', LOG, first + 1, wanted[at] + 1)) do
    local number, place = string.match(one[1], '^(%d+)-(%d+)$')
    local size, series, id = told_by(one[2][4])
    found[#found + 1] = {index = tonumber(number) - 1, place = tonumber(place), key = one[1],
      time = tonumber(one[2][2]), row = one[2][4], size = size, id = id}
    if series then
      gone[series] = (gone[series] or 0) + 1
    end
  end
  at = at + 1
end
if #found == 0 then
  return refuse('done', 0)
end

local values, told = {}, cmsgpack.unpack(ARGV[5])
for at = 1, #told, 4 do
  values[told[at]] = {told[at + 1], told[at + 2], told[at + 3]}
end
for series, count in pairs(gone) do
  local state = state_of(series)
  if state[MIXED] and count < state[COUNT] then
    local value = values[series]
    if not value or value[1] ~= state[INDEX_] then
      return refuse('mixed')
    end
    state[MIXED], state[TIME], state[ROW] = false, value[2], value[3]
  end
end

local events = {}
for _, event in ipairs(found) do
  events[event.index] = event
  call('XDEL', LOG, event.key)
  if event.place ~= event.index then
    call('ZREM', MOVED, event.index)
  end
  if event.id then
    call('HDEL', FOREIGN, event.id)
  end
  head.by = head.by - event.size
end
for series, count in pairs(gone) do
  local state = state_of(series)
  local newest = events[state[INDEX_]]
  state[COUNT] = state[COUNT] - count
  if state[COUNT] == 0 then
    call('HDEL', SERIES, series)
    call('UNLINK', TEXT .. series)
  else
    if newest and not state[ROW] then
      state[TIME], state[ROW] = newest.time, newest.row
    end
    call('HSET', SERIES, series, pack(state))
  end
end
local lowest, highest = found[1].index, found[#found].index
keep_rows(events, lowest, highest)
call('HSET', HEAD, 'ev', head.ev - #found, 'by', head.by, 'trimmed',
  math.max(head.trimmed, highest), 'trims', head.trims + #found)
return done(refuse('done', #found))
