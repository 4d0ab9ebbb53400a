-- Replies and announcements are MessagePack, put together from parts that are MessagePack already:
-- rows and bodies are never taken apart here.
local call, pack = redis.call, cmsgpack.pack
local NIL = '\192'

local function array(length)
  if length < 16 then
    return string.char(144 + length)
  elseif length < 65536 then
    return '\220' .. struct.pack('>I2', length)
  end
  return '\221' .. struct.pack('>I4', length)
end

local function binary(text)
  return '\198' .. struct.pack('>I4', #text) .. text
end

local function list(values)
  local packed = {}
  for at, value in ipairs(values) do
    packed[at] = pack(value)
  end
  return array(#values) .. table.concat(packed)
end

local function refuse(...)
  return array(select('#', ...)) .. pack(...)
end

-- A step whose reply was lost is asked for again under the same STEP: it gets that reply.
local function done(reply)
  call('SET', STEP, reply, 'PX', ARGV[2])
  return reply
end
