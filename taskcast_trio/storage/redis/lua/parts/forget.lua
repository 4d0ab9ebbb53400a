-- Remove everything of a task but its place in the order.
local function forget(id)
  for _, field in ipairs(call('HKEYS', HEAD)) do
    if string.sub(field, 1, 2) == 't:' then
      call('ZREM', DUE .. string.sub(field, 3), id)
    end
  end
  for _, series in ipairs(call('HKEYS', SERIES)) do
    call('UNLINK', TEXT .. series)
  end
  forget_publishers(id)
  call('UNLINK', HEAD, BODIES, LOG, MOVED, SERIES, FOREIGN, ANSWERS, EXPIRIES, NOTES)
end
