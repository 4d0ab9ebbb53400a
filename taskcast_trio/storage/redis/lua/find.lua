-- The event that may have an id: the one that was stored under it, else the one at an index.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has, 2 id, 3 index or ''
-- Result: ['done', record, entry or nil] or ['gone']; an entry is [index, place, ts, row]
-- Use: keys reply head log
local head = load()
if not head then
  return refuse('gone')
end
local index = call('HGET', FOREIGN, ARGV[2]) or ARGV[3]
local found = index ~= '' and entry_at(tonumber(index)) or NIL
return array(3) .. pack('done') .. record_for(head, ARGV[1]) .. found
