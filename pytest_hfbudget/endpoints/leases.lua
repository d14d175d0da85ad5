-- One step of one job on one endpoint. `fence` grows with each right to resume or to pause: who has
-- an older number has been taken for lost, and another has acted since.

local key, version, op, job = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local expiry, info, scaling, fence = tonumber(ARGV[4]), ARGV[5], ARGV[6], tonumber(ARGV[7])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local found = redis.call('HGET', key, 'v')
if found and found ~= version then
  return redis.error_reply('HFBUDGET version ' .. found .. ' of ' .. key)
end
local newest = math.max(tonumber(redis.call('HGET', key, 'fence') or '0'), fence)
local lock = redis.call('HGET', key, 'lock')
local others, mine, holding, pausing, locked = {}, nil, nil, nil, false
local all = redis.call('HGETALL', key)
for n = 1, #all, 2 do
  if string.sub(all[n], 1, 2) == 'h:' then
    local h = cjson.decode(all[n + 1])
    h.job = string.sub(all[n], 3)
    h.live = now - h.beat <= expiry
    if h.job == job then mine = h
    else
      others[#others + 1] = h
      if h.live and h.phase == 'holding' and not holding then holding = h.job end
      if h.live and h.phase == 'pausing' then pausing = h.job end
      if h.live and h.job == lock then locked = true end
    end
  end
end

local function keep(phase)
  local h = cjson.decode(info)
  h.phase, h.beat, h.fence, h.at = phase, now, fence, mine and mine.at or now
  redis.call('HSET', key, 'h:' .. job, cjson.encode(h))
end

-- A job that has left is remembered for an hour: a renewal that comes late is not to bring it back.
local function forget()
  redis.call('HDEL', key, 'h:' .. job)
  redis.call('HSET', key, 'x:' .. job, now)
end

local ok, left = true, nil
if op == 'hold' then
  if not (mine or holding) then redis.call('HSET', key, 'grid', now) end
  redis.call('HDEL', key, 'x:' .. job)
  keep('holding')
elseif op == 'renew' then
  if redis.call('HEXISTS', key, 'x:' .. job) == 0 then keep(mine and mine.phase or 'holding') end
elseif op == 'lock' then
  ok = not (pausing or locked)
  if ok then
    newest = newest + 1
    fence = newest
    keep('holding')
    redis.call('HSET', key, 'lock', job)
  end
elseif op == 'unlock' then
  if lock == job then redis.call('HDEL', key, 'lock') end
elseif op == 'up' then redis.call('HSET', key, 'up', job, 'up_at', now)
elseif op == 'release' or op == 'take' then
  left = pausing or (op == 'release' and holding)
  if left then forget()
  else
    newest = newest + 1
    fence = newest
    keep('pausing')
  end
elseif op == 'drop' then forget()
elseif op == 'end' then
  forget()
  if fence == newest then
    redis.call('HDEL', key, 'scaling', 'up', 'up_at')
    for _, h in ipairs(others) do
      if not h.live then redis.call('HDEL', key, 'h:' .. h.job) end
    end
  end
end
local gone = {}
for n = 1, #all, 2 do
  if string.sub(all[n], 1, 2) == 'x:' then
    local age = now - tonumber(all[n + 1])
    if age > 3600000 then redis.call('HDEL', key, all[n])
    else gone[string.sub(all[n], 3)] = age end
  end
end
if op ~= 'look' then
  if scaling ~= '' then redis.call('HSETNX', key, 'scaling', scaling) end
  redis.call('HSET', key, 'v', version, 'fence', newest)
  redis.call('EXPIRE', key, 604800)
end
local up, up_at = redis.call('HGET', key, 'up'), redis.call('HGET', key, 'up_at')
return cjson.encode({ok = ok, left = left or '', mine_at = mine and mine.at or 0,
  grid_ms = now - tonumber(redis.call('HGET', key, 'grid') or now + 1000), fence = fence, newest = newest, others = others, gone = gone,
  scaling = redis.call('HGET', key, 'scaling') or '', up = up or '',
  up_ms = up_at and now - tonumber(up_at) or 0, now = now})
