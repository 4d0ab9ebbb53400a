-- What a row (rows.py) says of its event: how many bytes its data has, the series of whose value it
-- is part or nil, and its id where that does not follow from its place. Data is passed over.
local function told_by(row)
  local fields = string.byte(row) - 144
  local at = cmsgpack.unpack_limit(row, 2, 1) + 1 -- behind type, level, and the kind of the data
  local kind, size = string.byte(row, at), 0
  if kind == 196 then
    at, size = at + 1, string.byte(row, at + 1)
  elseif kind == 197 then
    at, size = at + 2, struct.unpack('>I2', row, at + 1)
  elseif kind == 198 then
    at, size = at + 4, struct.unpack('>I4', row, at + 1)
  end
  if fields == 3 then
    return size
  end
  local _, series, mode, _, _, id = cmsgpack.unpack_limit(row, fields - 3, at + size)
  if not mode or mode == 0 or series == '' then -- 0 is keep-all
    series = nil
  end
  return size, series, id
end
