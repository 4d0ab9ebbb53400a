-- The state of a log and of every series in it.
-- KEYS: those of a task (parts/keys.lua)
-- ARGV: 1 epoch:revision of the body that the caller has
-- Result: ['done', record, values] or ['gone']; a value is [series, newest entry, key and running
--   text where it was joined, and all entries since it started where it is mixed]
-- Use: keys reply head log
local head = load()
if not head then
  return refuse('gone')
end
local values = {}
local all = call('HGETALL', SERIES)
for at = 1, #all, 2 do
  local series, state = all[at], cmsgpack.unpack(all[at + 1])
  local value = array(5) .. pack(series)
  if state[ROW] then
    value = value .. array(4) .. pack(state[INDEX_], state[PLACE], state[TIME]) .. state[ROW]
  else
    value = value .. entry_at(state[INDEX_])
  end
  if state[MIXED] then
    local entries = call('XRANGE', LOG, state[START] + 1, '+')
    for number, one in ipairs(entries) do
      entries[number] = entry(one)
    end
    value = value .. NIL .. NIL .. array(#entries) .. table.concat(entries)
  elseif state[JOINED] then
    value = value .. binary(state[KEY]) .. binary(call('GET', TEXT .. series)) .. NIL
  else
    value = value .. NIL .. NIL .. NIL
  end
  values[#values + 1] = value
end
return array(3) .. pack('done') .. record_for(head, ARGV[1]) .. array(#values)
  .. table.concat(values)
