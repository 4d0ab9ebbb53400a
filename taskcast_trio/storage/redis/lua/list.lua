-- Tasks of a bucket in the order of creation.
-- KEYS: 1 the bucket's order, 2 what the names of heads begin with
-- ARGV: 1 the place before, 2 how many, 3 statuses or '', 4 '' or '=' and the type
-- Result: [place and id in turn, whether there are more]
-- Use: reply
local after, limit = ARGV[1], tonumber(ARGV[2])
local statuses
if ARGV[3] ~= '' then
  statuses = {}
  for _, status in ipairs(cmsgpack.unpack(ARGV[3])) do
    statuses[status] = true
  end
end
local type_ = ARGV[4] ~= '' and string.sub(ARGV[4], 2)
local found, count, from, more = {}, 0, 0, false
repeat
  local page = call('ZRANGEBYSCORE', KEYS[1], '(' .. after, '+inf', 'WITHSCORES', 'LIMIT', from,
    limit)
  for at = 1, #page, 2 do
    local fits = true
    if statuses or type_ then
      local fields = call('HMGET', KEYS[2] .. page[at], 'status', 'type')
      fits = (not statuses or statuses[fields[1]]) and (not type_ or fields[2] == type_)
    end
    if fits then
      if count == limit then
        more = true
        break
      end
      count = count + 1
      found[#found + 1] = pack(tonumber(page[at + 1]), page[at])
    end
  end
  from = from + limit
until #page < 2 * limit or more
return array(2) .. array(2 * count) .. table.concat(found) .. pack(more)
