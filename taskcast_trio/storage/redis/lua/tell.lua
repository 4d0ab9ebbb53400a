-- Leave a message for every process; the newest are kept. Where all were lost the numbers go on from
-- the time, which is ahead of all that was counted: who has heard of a number waits for none above.
-- KEYS: 1 the messages by their number, 2 the channel on which that is announced
-- ARGV: 1 the message, 2 how many are kept, 3 a name that no other message has, 4 the time (Unix,
--   microseconds), 5 command to publish with
-- Result: its number
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
local number = last[2] and tonumber(last[2]) + 1 or tonumber(ARGV[4])
redis.call('ZADD', KEYS[1], 'NX', number, ARGV[3] .. ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -(tonumber(ARGV[2]) + 1))
redis.call(ARGV[5], KEYS[2], number)
return number
