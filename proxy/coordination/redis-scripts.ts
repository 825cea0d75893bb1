/**
 * Everything Redis remembers stands in one hash, so that losing part of it (eviction, FLUSHALL) loses its birth too:
 *
 *   born        Redis time (ms) at which the hash was made
 *   sent        number of the last announcement; a hole in what arrives shows that one was lost
 *   h:<worker>  `<instance> <expires> <revoked> <member as JSON>`
 *   r:<role>    `<nonce> <expires> <worker>`
 *
 * Scripts are atomic, so "publish, and list the holders of that moment" needs no further care. All answer with
 * [Redis time, age of the hash, ...].
 */
const prelude = `
local key, channel = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local function text(number) return string.format('%.0f', number) end
local born = tonumber(redis.call('HGET', key, 'born') or nil)
if not born then
  born = now
  redis.call('HSET', key, 'born', text(now))
end
local function publish(message)
  redis.call('PUBLISH', channel, text(redis.call('HINCRBY', key, 'sent', 1)) .. ' ' .. message)
end
local function holder(id)
  local value = redis.call('HGET', key, 'h:' .. id)
  if not value then return nil end
  local instance, expires, revoked, member = string.match(value, '^(%S+) (%d+) (%d) (.*)$')
  return { instance = instance, expires = tonumber(expires), revoked = revoked == '1', member = member }
end
local function put(id, instance, expires, revoked, member)
  redis.call('HSET', key, 'h:' .. id, instance .. ' ' .. text(expires) .. ' ' .. revoked .. ' ' .. member)
end
`

/** ARGV: worker, instance, fresh, ttl, member, messages: the former instance (%s) is gone; somebody joined. */
const renew = `${prelude}
local id, instance, fresh, ttl, member, gone = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4]), ARGV[5], ARGV[6]
local joined = ARGV[7]
local old = holder(id)
if not fresh and (not old or old.instance ~= instance or old.revoked or old.expires <= now) then
  return { now, now - born, 0, 0 }
end
if old and old.instance ~= instance then publish((string.gsub(gone, '%%s', old.instance))) end
put(id, instance, now + ttl, '0', member)
if fresh then publish(joined) end
local others = 0
local all = redis.call('HGETALL', key)
for at = 1, #all, 2 do
  if string.sub(all[at], 1, 2) == 'h:' and all[at] ~= 'h:' .. id then
    local expires = string.match(all[at + 1], '^%S+ (%d+)')
    if tonumber(expires) > now then others = others + 1 end
  end
end
return { now, now - born, 1, others }
`

/** ARGV: worker, messages. What has expired is removed, so that no clock can bring it back to life. */
const announce = `${prelude}
local all = redis.call('HGETALL', key)
local result = { now, now - born }
local live = false
for at = 1, #all, 2 do
  local id = string.match(all[at], '^h:(.*)$')
  if id and id ~= ARGV[1] then
    local instance, expires, revoked = string.match(all[at + 1], '^(%S+) (%d+) (%d)')
    local left = tonumber(expires) - now
    if left <= 0 then
      redis.call('HDEL', key, all[at])
    else
      if revoked == '0' then live = true end
      result[#result + 1] = id
      result[#result + 1] = instance
      result[#result + 1] = left
      result[#result + 1] = revoked
    end
  end
end
if live then
  for at = 2, #ARGV do publish(ARGV[at]) end
end
return result
`

/** ARGV: worker, instance. Answers with what is left of the lease. */
const revoke = `${prelude}
local old = holder(ARGV[1])
if not old or old.instance ~= ARGV[2] then return { now, now - born, 0 } end
put(ARGV[1], old.instance, old.expires, '1', old.member)
return { now, now - born, math.max(0, old.expires - now) }
`

/** ARGV: worker, instance, message that it is gone. */
const release = `${prelude}
local old = holder(ARGV[1])
if old and old.instance == ARGV[2] then
  redis.call('HDEL', key, 'h:' .. ARGV[1])
  publish(ARGV[3])
end
return { now, now - born }
`

/** ARGV: role, nonce, ttl, worker, how old the hash must be: a younger one may have forgotten a holder. */
const takeRole = `${prelude}
local field = 'r:' .. ARGV[1]
local value = redis.call('HGET', key, field)
local expires = value and tonumber(string.match(value, '^%S+ (%d+)')) or 0
if expires > now or now - born < tonumber(ARGV[5]) then return { now, now - born, 0 } end
redis.call('HSET', key, field, ARGV[2] .. ' ' .. text(now + tonumber(ARGV[3])) .. ' ' .. ARGV[4])
return { now, now - born, 1 }
`

/** ARGV: role, nonce, ttl (0: free it), worker. Only its own. */
const keepRole = `${prelude}
local field = 'r:' .. ARGV[1]
local value = redis.call('HGET', key, field)
local nonce, expires = string.match(value or '', '^(%S+) (%d+)')
if nonce ~= ARGV[2] or tonumber(expires) <= now then return { now, now - born, 0 } end
if ARGV[3] == '0' then
  redis.call('HDEL', key, field)
else
  redis.call('HSET', key, field, nonce .. ' ' .. text(now + tonumber(ARGV[3])) .. ' ' .. ARGV[4])
end
return { now, now - born, 1 }
`

/** Read only: [Redis time, field, value, ...]. */
const list = `
local time = redis.call('TIME')
local result = redis.call('HGETALL', KEYS[1])
table.insert(result, 1, tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
return result
`

const twoKeys = (lua: string): { lua: string; numberOfKeys: number } => ({ lua, numberOfKeys: 2 })
export const scripts = {
  renew: twoKeys(renew),
  announce: twoKeys(announce),
  revoke: twoKeys(revoke),
  release: twoKeys(release),
  takeRole: twoKeys(takeRole),
  keepRole: twoKeys(keepRole),
  list: twoKeys(list),
} as const
