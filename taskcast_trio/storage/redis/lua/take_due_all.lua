-- Put off the earliest of the timers of a kind that are due.
-- KEYS: the timers of the kind in each bucket, and last, under which the reply is remembered
-- ARGV: 1 now, 2 until when, 3 how many at most, 4 how long a reply is remembered (ms)
-- Result: a list of the tasks, the earliest first
-- Use: reply
local STEP = KEYS[#KEYS]
local known = call('GET', STEP)
if known then
  return known
end
local limit, due, unread = tonumber(ARGV[3]), {}, {}

local function read(bucket, until_, from, count)
  local found = call('ZRANGEBYSCORE', KEYS[bucket], '-inf', until_, 'WITHSCORES', 'LIMIT', from,
    count)
  for at = 1, #found, 2 do
    due[#due + 1] = {tonumber(found[at + 1]), found[at], KEYS[bucket]}
  end
  return #found == 2 * count and tonumber(found[#found])
end

local function sort()
  table.sort(due, function(one, other)
    return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2])
  end)
end

-- A few of each bucket, then more of those that may have more that are wanted.
local few = math.min(4 + math.floor(limit / 64), limit)
for bucket = 1, #KEYS - 1 do
  unread[bucket] = read(bucket, ARGV[1], 0, few)
end
sort()
local last = due[limit] and due[limit][1] or tonumber(ARGV[1])
for bucket = 1, #KEYS - 1 do
  if unread[bucket] and unread[bucket] <= last and few < limit then
    read(bucket, last, few, limit - few)
  end
end
sort()
local taken = {}
for at = 1, math.min(limit, #due) do
  call('ZADD', due[at][3], ARGV[2], due[at][2])
  taken[at] = due[at][2]
end
local reply = list(taken)
call('SET', STEP, reply, 'PX', ARGV[4])
return reply
