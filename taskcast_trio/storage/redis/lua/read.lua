-- A page of a log in the order of the indexes.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has, 2 first index, 3 how many
-- Result: ['done', record, entries] or ['gone']; an entry is [index, place, ts, row]
-- Use: keys reply head log
local head = load()
if not head then
  return refuse('gone')
end
local found = call('XRANGE', LOG, tonumber(ARGV[2]) + 1, '+', 'COUNT', ARGV[3])
for at, one in ipairs(found) do
  found[at] = entry(one)
end
return array(3) .. pack('done') .. record_for(head, ARGV[1]) .. array(#found)
  .. table.concat(found)
