-- The first tasks of every bucket in the order of creation.
-- KEYS: the order of each bucket
-- ARGV: 1 the place before, 2 how many of each
-- Result: for each bucket, [place and id in turn, whether there are more]
-- Use: reply
local limit, pages = tonumber(ARGV[2]), {}
for bucket, order in ipairs(KEYS) do
  local found = call('ZRANGEBYSCORE', order, '(' .. ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', 0,
    limit + 1)
  local shown, page = math.min(#found, 2 * limit), {}
  for at = 1, shown, 2 do
    page[#page + 1] = pack(tonumber(found[at + 1]), found[at])
  end
  pages[bucket] = array(2) .. array(shown) .. table.concat(page) .. pack(#found > shown)
end
return array(#pages) .. table.concat(pages)
