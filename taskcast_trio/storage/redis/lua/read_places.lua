-- A page of a log in stored order.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has, 2 the place before, 3 the index below,
--   4 how many
-- Result: ['done', record, entries] or ['gone']; an entry is [index, place, ts, row]
-- Use: keys reply head log
local head = load()
if not head then
  return refuse('gone')
end
local after_place, after_index, limit = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

-- Those in another's place, in the order of the places.
local moved, from = {}, 0
repeat
  local found = call('ZRANGEBYSCORE', MOVED, '(' .. after_place, '+inf', 'WITHSCORES', 'LIMIT',
    from, limit)
  for at = 1, #found, 2 do
    if tonumber(found[at]) > after_index then
      moved[#moved + 1] = {tonumber(found[at + 1]), tonumber(found[at])} -- place, index
    end
  end
  from = from + limit
until #found < 2 * limit or #moved >= limit

-- Between them those in their own place.
local entries, taken = {}, 1
local start = math.max(after_place, after_index) + 2
while #entries < limit do
  local found = call('XRANGE', LOG, start, '+', 'COUNT', limit)
  for _, one in ipairs(found) do
    local number, place = string.match(one[1], '^(%d+)-(%d+)$')
    number, place = tonumber(number), tonumber(place)
    start = number + 1
    if place == number - 1 and #entries < limit then
      while moved[taken] and moved[taken][1] < place and #entries < limit do
        entries[#entries + 1] = entry_at(moved[taken][2])
        taken = taken + 1
      end
      if #entries < limit then
        entries[#entries + 1] = entry(one)
      end
    end
  end
  if #found < limit then
    break
  end
end
while moved[taken] and #entries < limit do
  entries[#entries + 1] = entry_at(moved[taken][2])
  taken = taken + 1
end
return array(3) .. pack('done') .. record_for(head, ARGV[1]) .. array(#entries)
  .. table.concat(entries)
