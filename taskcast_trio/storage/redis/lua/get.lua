-- The record of a task.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has
-- Result: ['done', record] or ['gone']
-- Use: keys reply head
local head = load()
if not head then
  return refuse('gone')
end
return array(2) .. pack('done') .. record_for(head, ARGV[1])
