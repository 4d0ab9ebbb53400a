-- Tell every process. Bodies and messages that are too large are left out: who hears of it reads.
local CHANGED, CREATED, DELETED, REPLACED, FACT = 0, 1, 2, 4, 8
local MAX_BODY, MAX_MESSAGE = 2048, 65536

local function announce(id, publish, kind, ts, moved, rows, record_)
  local message = array(5) .. pack(kind, ts) .. moved .. rows .. record_
  if #message > MAX_MESSAGE then
    message = array(1) .. pack(FACT)
  end
  call(publish, CHANNEL, struct.pack('>I2', #id) .. id .. message)
end
