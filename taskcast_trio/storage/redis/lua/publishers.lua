-- The publishers of a task that count their events.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has, 2 id
-- Result: ['done', record, ids and expected seqs in turn] or ['gone']
-- Use: keys reply head publishers
local head = load()
if not head then
  return refuse('gone')
end
return array(3) .. pack('done') .. record_for(head, ARGV[1])
  .. list(call('HGETALL', publishers_key(ARGV[2])))
