-- Write the head of a new life of a task.
local function enter(f)
  call('HSET', HEAD, 'epoch', f.epoch, 'rev', f.rev, 'next', f.next, 'imp', f.imp, 'former',
    f.former, 'ts', f.ts, 'ev', f.ev, 'by', f.by, 'trimmed', f.trimmed, 'trims', f.trims, 'end',
    f.ended, 'size', #f.body, 'status', f.status)
  if f.type ~= '' then
    call('HSET', HEAD, 'type', string.sub(f.type, 2))
  end
  if f.fence ~= '' then
    call('HSET', HEAD, 'fence', f.fence)
  end
  call('HSET', BODIES, f.rev, f.body)
end
