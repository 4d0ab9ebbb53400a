-- Timers come as a list of kind and due time in turn, packed.
local PARKED = 4503599627370496 -- PARKED_MS

-- Set timers, or clear those whose time is false.
local function set_timers(id, packed)
  local timers = cmsgpack.unpack(packed)
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

local function due_at(id, kind)
  return tonumber(call('ZSCORE', DUE .. kind, id))
end

local function are_due(id, packed)
  local timers = cmsgpack.unpack(packed)
  for at = 1, #timers, 2 do
    if due_at(id, timers[at]) ~= timers[at + 1] then
      return false
    end
  end
  return true
end

-- Make timers due no later than this.
local function wake(id, packed)
  local timers = cmsgpack.unpack(packed)
  for at = 1, #timers, 2 do
    local due = due_at(id, timers[at])
    if not due or timers[at + 1] < due then
      call('HSET', HEAD, 't:' .. timers[at], '')
      call('ZADD', DUE .. timers[at], timers[at + 1], id)
    end
  end
end

-- Make those of these timers due that the task has, and that are parked.
local function hasten(id, packed)
  local timers = cmsgpack.unpack(packed)
  for at = 1, #timers, 2 do
    if due_at(id, timers[at]) == PARKED then
      call('ZADD', DUE .. timers[at], timers[at + 1], id)
    end
  end
end
