-- Set and clear timers: a list of kind and due time in turn, false to clear.
local function set_timers(id, timers)
  for at = 1, #timers, 2 do
    local kind, due = timers[at], timers[at + 1]
    if due then
      call('HSET', HEAD, 't:' .. kind, '')
      call('ZADD', DUE .. kind, due, id)
    else
      call('HDEL', HEAD, 't:' .. kind)
      call('ZREM', DUE .. kind, id)
    end
  end
end
