-- One step of one job: it tells where it stands in each shared budget, and draws what it needs.
--
-- Per pool: the cap; what this job has been advanced and has spent of it; what it needs at least and
-- at the most; what lost and ended jobs had spent when it last looked (-1: it never has); seconds
-- to keep the key. A pool that this job knows, and that is not there, was lost with its server: for
-- three seconds nothing is drawn from it, until the jobs that live have told again what they have.

local now = tonumber(redis.call('TIME')[1])
local version, job, seq, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local closes = ARGV[5] == 'close'
local function whole(number) return string.format('%.0f', number) end
local closed = KEYS[#KEYS]
if closes and redis.call('EXISTS', closed) == 1 then return {1, now} end
local pools, enough = {}, true
for i = 1, #KEYS - 1 do
  local key, at = KEYS[i], 5 + (i - 1) * 7
  local p = {cap = tonumber(ARGV[at + 1]), own = tonumber(ARGV[at + 2]),
    spent = tonumber(ARGV[at + 3]), least = tonumber(ARGV[at + 4]), most = tonumber(ARGV[at + 5]),
    gone = tonumber(ARGV[at + 6]), keep = ARGV[at + 7],
    ended = 0, dead = 0, used = 0, unspent = 0, jobs = 1, wished = 0}
  local found = redis.call('HGET', key, 'v')
  if found and found ~= version then
    return redis.error_reply('HFBUDGET version ' .. found .. ' of ' .. key)
  end
  local all = redis.call('HGETALL', key)
  for n = 1, #all, 2 do
    local name, value = all[n], all[n + 1]
    if name == 'ended' then p.ended = tonumber(value)
    elseif name == 'lost' then p.lost = tonumber(value)
    elseif string.sub(name, 1, 2) == 'j:' then
      local s, a, b, t, w = string.match(value, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
      if name == 'j:' .. job then
        if tonumber(s) > seq then return {-1, now} end
        if tonumber(s) == seq then p.own, p.least, p.most = tonumber(a), 0, 0 end
      elseif now - tonumber(t) > expiry then p.dead = p.dead + tonumber(a)
      else
        p.jobs, p.used, p.wished = p.jobs + 1, p.used + tonumber(b), p.wished + tonumber(w)
        p.unspent = p.unspent + math.max(tonumber(a) - tonumber(b), 0)
      end
    end
  end
  if #all == 0 and p.gone >= 0 then p.lost, p.ended = now, p.gone end
  p.free = p.cap - p.ended - p.dead - p.used - p.unspent - p.own
  local settling = p.lost and now - p.lost < 3
  if p.least > 0 and (p.free < p.least or settling) then enough = false end
  if settling then p.free = 0 end
  pools[i] = p
end
local reply = {enough and 1 or 0, now}
for i, p in ipairs(pools) do
  local key, wish = KEYS[i], 0
  if enough and p.most > 0 then
    local more = 0
    if p.wished == 0 then
      more = math.min(math.floor(p.cap / (8 * p.jobs)), math.floor(p.free / (2 * p.jobs)))
    end
    p.own = p.own + math.max(math.min(p.free, math.max(p.most, more)), 0)
  elseif p.least > 0 and p.free < p.least then wish = p.least end
  redis.call('HSET', key, 'v', version)
  if p.lost then redis.call('HSET', key, 'lost', p.lost) end
  if closes then
    redis.call('HDEL', key, 'j:' .. job)
    p.ended = p.ended + p.spent
  else
    redis.call('HSET', key, 'j:' .. job, table.concat(
      {whole(seq), whole(p.own), whole(p.spent), whole(now), whole(wish)}, ' '))
  end
  redis.call('HSET', key, 'ended', whole(p.ended))
  redis.call('EXPIRE', key, p.keep)
  for _, number in ipairs({p.own, p.ended + p.dead, p.used, p.unspent, p.jobs, p.wished}) do
    reply[#reply + 1] = number
  end
end
if closes then redis.call('SET', closed, version, 'EX', 86400) end
return reply
