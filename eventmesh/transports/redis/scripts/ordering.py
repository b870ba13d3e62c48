"""Ordered subscriptions: a mailbox for each key, and leases on keys.

All scripts but DECLARE_ORDER's callers' own checks share KEYS: the keys of `Keys.ordered`, streams
last, and among these the retry stream last. ARGV[1] is the group.

A `tag` stands for a key of messages: a colon and the key, or nothing for messages without a key. A
mailbox is the list `mail` + tag. It holds records, oldest first; those that are leased stay at its
head until they are settled. A record is made of a few numbers and the fields of an entry:

    m <attempt> <deliveries> <entry id> <names and values as a JSON list of texts>

or begins with `r` if it is a replayed dead letter: of these, the next one comes behind the others.
The texts may be any bytes: cjson leaves those that are not ASCII as they are.

A tag with records is in exactly one place: in `ready`, by the time of its head; in `held`, by the
time when it is due, which is infinite behind a dead letter; or in the hash `leases:<consumer>`, as
`<lease> <out> <settled>`: the lease's number, how many records are out, and how many of these are
settled and gone.
"""

from __future__ import annotations

from eventmesh.transports.redis.scripts.common import READ, TRY

MAILBOXES = """
local order, mail, ready, held, consumers, leases, holding, wake, dead, retry, delayed =
  unpack(KEYS, 1, 11)
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function make_ready(tag)
  local head = redis.call('LINDEX', mail .. tag, 0)
  if head then
    redis.call('ZADD', ready, string.match(head, '^[mr] %d+ %d+ (%d+)') or '0', tag)
  end
  return head
end
local function renumbered(record, attempt, deliveries)
  local letter, rest = string.match(record, '^([mr] )%d+ %d+( .*)$')
  return letter .. attempt .. ' ' .. deliveries .. rest
end
local function wake_up()
  redis.call('XADD', wake, 'MAXLEN', 1, '*', 'wake', 'up')
end
local function is_tag(name) return name == '' or string.sub(name, 1, 1) == ':' end
local function lease(value)
  local number, out, settled = string.match(value or '', '^(%d+) (%d+) (%d+)$')
  return number, tonumber(out), tonumber(settled)
end
local function end_leases(consumer, received)
  local flat = redis.call('HGETALL', leases .. ':' .. consumer)
  redis.call('DEL', leases .. ':' .. consumer)
  redis.call('ZREM', consumers, consumer)
  local number, out, settled
  for at = 1, #flat, 2 do
    local tag = flat[at]
    if is_tag(tag) then
      number, out, settled = lease(flat[at + 1])
      local counted = received and (received[tag] or 0) or out
      for place = 0, counted - settled - 1 do
        local record = redis.call('LINDEX', mail .. tag, place)
        local attempt, deliveries = string.match(record or '', '^[mr] (%d+) (%d+) ')
        if attempt then
          redis.call('LSET', mail .. tag, place, renumbered(record, attempt, deliveries + 1))
        end
      end
      make_ready(tag)
    end
  end
  if #flat > 0 then wake_up() end
end
local function record_of(id, fields, deliveries)
  return 'm 1 ' .. (deliveries or 0) .. ' ' .. id .. ' ' .. cjson.encode(fields)
end
local function packed_key(packed)
  local good, attributes = pcall(cjson.decode, string.match(packed, '^[^\\n]*'))
  if not good or type(attributes) ~= 'table' then return '' end
  for _, name in ipairs({'partitionkey', 'subject'}) do
    local key = attributes[name]
    if type(key) == 'string' and key ~= '' then return ':' .. key end
  end
  return ''
end
local function tag_of(fields)
  if fields[1] == 'parcel' then
    return packed_key(string.match(fields[2], '\\n(.*)$') or '')
  elseif fields[1] == 'envelope' then
    return packed_key(fields[2])
  end
  local tag = ''
  for at = 1, #fields, 2 do
    if fields[at] == 'partitionkey' and fields[at + 1] ~= '' then return ':' .. fields[at + 1] end
    if fields[at] == 'subject' and fields[at + 1] ~= '' then tag = ':' .. fields[at + 1] end
  end
  return tag
end
local function put_last(tag, record)
  local length = redis.call('RPUSH', mail .. tag, record)
  if length == 1 and not redis.call('ZSCORE', held, tag) then make_ready(tag) end
end
local function leased(tag)
  for _, consumer in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
    local number, out, settled = lease(redis.call('HGET', leases .. ':' .. consumer, tag))
    if number then return out - settled end
  end
end
local function record_at(tag, place) return redis.call('LINDEX', mail .. tag, place) or '' end
local function was_replayed(tag, place) return string.sub(record_at(tag, place), 1, 2) == 'r ' end
local function was_received(tag, place)
  local attempt, deliveries = string.match(record_at(tag, place), '^m (%d+) (%d+) ')
  return attempt and (tonumber(attempt) > 1 or tonumber(deliveries) > 0)
end
local function behind_replayed(tag, first)
  local last, step = first, 1
  while was_received(tag, last) do last = last + 1 end
  if not was_replayed(tag, last) then return first end
  while was_replayed(tag, last + step) do last, step = last + step, step * 2 end
  while step > 1 do
    step = step / 2
    if was_replayed(tag, last + step) then last = last + step end
  end
  return last + 1
end
local function put_first(tag, record)
  record = 'r' .. string.sub(record, 2)
  local place = behind_replayed(tag, leased(tag) or 0)
  local neighbour = redis.call('LINDEX', mail .. tag, math.max(0, place - 1))
  if neighbour then
    redis.call('LINSERT', mail .. tag, place > 0 and 'AFTER' or 'BEFORE', neighbour, record)
  else
    put_last(tag, record)
  end
  redis.call('HINCRBY', order, 'messages', 1)
  wake_up()
end
local function let_go(fields)
  local tag, since
  for at = 1, #fields, 2 do
    if fields[at] == 'holds' then tag = fields[at + 1] end
    if fields[at] == 'since' then since = fields[at + 1] end
  end
  if not tag or since ~= redis.call('HGET', holding, 'since') then return end
  if redis.call('HINCRBY', holding, tag, -1) <= 0 then
    redis.call('HDEL', holding, tag)
    if redis.call('ZSCORE', held, tag) == 'inf' then
      redis.call('ZREM', held, tag)
      make_ready(tag)
      wake_up()
    end
  end
end
"""
"""Functions that the scripts share. `end_leases` gives back what a consumer has, and counts one
delivery more for what it received: `received` gives, by tag, how many of its run that were, and
everything counts without it. `put_first` puts a replayed dead letter before everything that nobody
has received, but behind those that were replayed earlier: these are together, perhaps behind some
that were received. `let_go` is called with the fields of a dead letter that is deleted,
and releases the key that it holds, unless that is from a time before dead letters held no keys: the
hash `holding` has, beside the numbers of tags, `since` when they do."""

DECLARE_ORDER = (
    TRY
    + MAILBOXES
    + """
try(order, 'HDEL', '')
for _, key in ipairs({ready, held, consumers}) do try(key, 'ZCARD') end
try(wake, 'XLEN')
if redis.call('HGET', order, 'after_dead') == ARGV[2] then return end
redis.call('HSET', order, 'after_dead', ARGV[2])
if not redis.call('HGET', order, 'messages') then
  local messages = 0
  local function count(tag) messages = messages + redis.call('LLEN', mail .. tag) end
  for _, tag in ipairs(redis.call('ZRANGE', ready, 0, -1)) do count(tag) end
  for _, tag in ipairs(redis.call('ZRANGE', held, 0, -1)) do count(tag) end
  for _, consumer in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
    local flat = redis.call('HGETALL', leases .. ':' .. consumer)
    for at = 1, #flat, 2 do
      if is_tag(flat[at]) then count(flat[at]) end
    end
  end
  redis.call('HSET', order, 'messages', messages)
end
if ARGV[2] == 'hold' then return end
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', held, '+inf', '+inf')) do
  redis.call('ZREM', held, tag)
  make_ready(tag)
end
redis.call('DEL', holding)
"""
)
"""ARGV group, 'continue' or 'hold'.

Records that the subscription is ordered, and counts what is in mailboxes if somebody deleted the
count. If dead letters hold keys no longer, those are released.
"""

ENTER = (
    MAILBOXES
    + """
local _, consumer, epoch, client, lifetime = unpack(ARGV, 1, 5)
local mine, known, kept, returned = leases .. ':' .. consumer, {}, {}, false
for at = 6, #ARGV, 2 do known[ARGV[at]] = ARGV[at + 1] end
redis.call('HDEL', order, '')
redis.call('ZADD', consumers, string.format('%.0f', now() + lifetime), consumer)
local flat = redis.call('HGETALL', mine)
redis.call('HSET', mine, 'epoch', epoch, 'client', client, 'about',
           'This text is longer than 64 bytes, so that Redis keeps this hash as a table.')
for at = 1, #flat, 2 do
  local tag = flat[at]
  if is_tag(tag) then
    if lease(flat[at + 1]) == known[tag] then
      kept[#kept + 1] = tag
    else
      redis.call('HDEL', mine, tag)
      make_ready(tag)
      returned = true
    end
  end
end
if returned then wake_up() end
return kept
"""
)
"""ARGV group, consumer, epoch, client id, lifetime in ms, then tag and lease of each run that the
consumer knows.

A small hash would be kept as a list, in which adding 400 keys takes 3 µs for each.

Registers a consumer, or one that has a new connection: what was sent to the former one and never
arrived is given back without counting as delivered, and with another epoch, a TAKE that is still on
its way there finds nothing. Returns the tags of the known runs that the consumer still has.
"""

BEAT = (
    MAILBOXES
    + """
if not redis.call('ZSCORE', consumers, ARGV[2]) then return 0 end
redis.call('HDEL', order, '')
redis.call('ZADD', consumers, string.format('%.0f', now() + ARGV[3]), ARGV[2])
return 1
"""
)
"""ARGV group, consumer, lifetime in ms. A heartbeat; returns 0 if the consumer counts as dead."""

TAKE = (
    READ
    + TRY
    + MAILBOXES
    + """
local group_name, consumer, epoch, room, lifetime, most = unpack(ARGV)
local function added_to(stream)
  local flat = redis.call('XINFO', 'STREAM', stream)
  for at = 1, #flat, 2 do
    if flat[at] == 'entries-added' then return flat[at + 1] end
  end
end
room, most = tonumber(room), tonumber(most)
local mine, time = leases .. ':' .. consumer, now()
local after_dead = try(order, 'HGET', 'after_dead')
if not after_dead then return {'undeclared'} end
if redis.call('HGET', mine, 'epoch') ~= epoch or not redis.call('ZSCORE', consumers, consumer) then
  return {'lost'}
end
try(order, 'HDEL', '')
redis.call('ZADD', consumers, string.format('%.0f', time + lifetime), consumer)
time = string.format('%.0f', time)
for _, other in ipairs(redis.call('ZRANGEBYSCORE', consumers, '-inf', time)) do
  end_leases(other)
end

local groups = {}
local old = redis.call('XLEN', retry) + redis.call('ZCARD', delayed)
for number = 12, #KEYS do
  for _, flat in ipairs(read('XINFO', 'GROUPS', KEYS[number]) or {}) do
    local group = {}
    for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
    if group['name'] == group_name then groups[number] = group end
  end
  if not groups[number] then return {'undeclared'} end
  old = old + groups[number]['pending']
end
if old > 0 then return {'old'} end

for _, tag in ipairs(redis.call('ZRANGEBYSCORE', held, '-inf', time, 'LIMIT', 0, 100)) do
  redis.call('ZREM', held, tag)
  make_ready(tag)
end

local number, taken, leasing = redis.call('HINCRBY', order, 'leases', 1), {}, {'HSET', mine}
local function give(tag, records)
  leasing[#leasing + 1] = tag
  leasing[#leasing + 1] = number .. ' ' .. #records .. ' 0'
  taken[#taken + 1] = {tag, records}
  room = room - #records
end
local entries_at_once = room
for _, tag in ipairs(redis.call('ZRANGE', ready, 0, room - 1)) do
  if room == 0 then break end
  local records = redis.call('LRANGE', mail .. tag, 0, room - 1)
  redis.call('ZREM', ready, tag)
  if records[1] then give(tag, records) end
end

local messages = tonumber(redis.call('HGET', order, 'messages') or 0)
local is_full, more = messages >= most, false
if not is_full and room > 0 then
  local pages, end_ms, end_seq, routed = {}, math.huge, math.huge, 0
  local function numbers(id)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    return tonumber(ms), tonumber(seq)
  end
  for at = 12, #KEYS - 1 do
    local after = '(' .. groups[at]['last-delivered-id']
    local entries = redis.call('XRANGE', KEYS[at], after, '+', 'COUNT', entries_at_once)
    if entries[1] then
      local page = {key = at, entries = entries, used = 0}
      page.ms, page.seq = numbers(entries[1][1])
      pages[#pages + 1] = page
    end
    if #entries == entries_at_once then
      more = true
      local ms, seq = numbers(entries[#entries][1])
      if ms < end_ms or ms == end_ms and seq < end_seq then end_ms, end_seq = ms, seq end
    end
  end
  local tags, boxes = {}, {}
  local function route(page, many)
    local entry = page.entries[page.used + 1]
    local tag, record = tag_of(entry[2]), record_of(entry[1], entry[2])
    local box = boxes[tag]
    if box then
      box[#box + 1] = record
    else
      tags[#tags + 1] = tag
      boxes[tag] = {record}
    end
    page.used = page.used + 1
    routed = routed + 1
    local following = page.entries[page.used + 1]
    if following and many then page.ms, page.seq = numbers(following[1]) end
    return following
  end
  if #pages == 1 and end_ms == math.huge or #KEYS == 13 then
    while pages[1] and route(pages[1]) do end
  else
    local open = {unpack(pages)}
    while open[1] do
      local first = 1
      for other = 2, #open do
        local one, two = open[first], open[other]
        if two.ms < one.ms or two.ms == one.ms and two.seq < one.seq then first = other end
      end
      local page = open[first]
      if page.ms > end_ms or page.ms == end_ms and page.seq > end_seq then break end
      if not route(page, true) then table.remove(open, first) end
    end
  end
  for _, tag in ipairs(tags) do
    local box = boxes[tag]
    local length
    for first = 1, #box, 1000 do  -- Lua can unpack about 8,000 at once
      local last = math.min(first + 999, #box)
      length = redis.call('RPUSH', mail .. tag, unpack(box, first, last))
    end
    if length == #box and (after_dead ~= 'hold' or not redis.call('ZSCORE', held, tag)) then
      if room == 0 then
        make_ready(tag)
      else
        give(tag, #box <= room and box or {unpack(box, 1, room)})
      end
    end
  end
  for _, page in ipairs(pages) do
    if page.used > 0 then
      local group, last = groups[page.key], page.entries[page.used][1]
      local before = group['entries-read']
      if not before and group['lag'] then
        before = added_to(KEYS[page.key]) - group['lag']
      end
      local position = {'XGROUP', 'SETID', KEYS[page.key], group_name, last}
      if before then position[6], position[7] = 'ENTRIESREAD', before + page.used end
      redis.call(unpack(position))
      group['last-delivered-id'] = last
    end
  end
  if routed > 0 then redis.call('HINCRBY', order, 'messages', routed) end
end
if taken[1] then redis.call(unpack(leasing)) end
if redis.call('ZCARD', ready) > 0 then
  more = true
  if redis.call('ZCARD', consumers) > 1 then wake_up() end
end

local due = redis.call('ZRANGEBYSCORE', held, '-inf', '(inf', 'WITHSCORES', 'LIMIT', 0, 1)
local waits = {}
if not is_full then
  for number = 12, #KEYS - 1 do
    waits[#waits + 1] = groups[number]['last-delivered-id']
  end
end
local woken = redis.call('XREVRANGE', wake, '+', '-', 'COUNT', 1)[1]
return {
  'taken', number, taken, more and 1 or 0,
  due[2] and math.min(math.max(0, due[2] - time), 1e9) or -1,
  waits, woken and woken[1] or '0-0'
}
"""
)
"""ARGV group, consumer, epoch, room, lifetime in ms, the most records in mailboxes.

Leases ready keys with up to `room` records to the consumer. If they have fewer, it moves as many
new entries of each stream to mailboxes, in the order of their ids, and leases keys that had none.
It moves no entry that is later than the last of a stream that has more: an earlier one may follow
there. The group's count of entries goes on, so that Redis knows its lag.

Returns {'taken', lease, {tag, records} of each key, whether there is more, ms until the next held
key is due or -1, the id after which to wait in each stream, and in `wake`}; no streams if the
mailboxes are full. Or {'undeclared'}; {'lost'} if the consumer counts as dead; {'old'} if there are
messages from before the subscription was ordered: see ADOPT.
"""

SETTLE = (
    MAILBOXES
    + """
local mine, pause = leases .. ':' .. ARGV[2], tonumber(ARGV[3])
redis.call('HDEL', order, '')
local at, removed, wakes, errors = 5 + ARGV[4] * 2, 0, false, {}
local after_dead = redis.call('HGET', order, 'after_dead')
local function hold(tag, delay)
  local time = redis.call('TIME')
  local due = time[1] * 1000 + math.ceil(time[2] / 1000) + delay
  redis.call('ZADD', held, string.format('%.0f', due), tag)
  wakes = true
end
local function remove(tag, count)
  redis.call('LTRIM', mail .. tag, count, -1)
  removed = removed + count
end
local function dead_letter(tag, first, last)
  local fields = {unpack(ARGV, first, last)}
  if after_dead == 'hold' then
    local since = redis.call('HGET', holding, 'since')
    if not since then
      since = table.concat(redis.call('TIME'), '.')
      redis.call('HSET', holding, 'since', since)
    end
    for _, text in ipairs({'holds', tag, 'since', since}) do
      fields[#fields + 1] = text
    end
  end
  local reply = redis.pcall('XADD', dead, '*', unpack(fields))
  if type(reply) == 'table' and reply.err then
    errors[#errors + 1] = reply.err
    hold(tag, pause)
    return
  end
  remove(tag, 1)
  if after_dead == 'hold' then
    redis.call('HINCRBY', holding, tag, 1)
    redis.call('ZADD', held, '+inf', tag)
  elseif make_ready(tag) then
    wakes = true
  end
end
for place = 5, at - 1, 2 do
  local tag, number = ARGV[place], ARGV[place + 1]
  local current, out, settled = lease(redis.call('HGET', mine, tag))
  if current == number then
    remove(tag, out - settled)
    redis.call('HDEL', mine, tag)
    if make_ready(tag) then wakes = true end
  end
end
while ARGV[at] do
  local tag, number, last, kind, count = unpack(ARGV, at, at + 4)
  local first = at + 5
  at = first + count
  local current, out, settled = lease(redis.call('HGET', mine, tag))
  if current == number then
    last = tonumber(last)
    if last > settled then remove(tag, last - settled) end
    if kind == 'done' then
      redis.call('HSET', mine, tag, number .. ' ' .. out .. ' ' .. math.max(last, settled))
    else
      redis.call('HDEL', mine, tag)
      if kind == 'retry' then
        local head, delay = redis.call('LINDEX', mail .. tag, 0), tonumber(ARGV[first])
        if head then  -- unless somebody deleted the mailbox
          local attempt = string.match(head, '^[mr] (%d+)')
          redis.call('LSET', mail .. tag, 0, renumbered(head, attempt + 1, 0))
          if delay > 0 then hold(tag, delay) else make_ready(tag) end
          wakes = true
        end
      else
        dead_letter(tag, first, at - 1)
      end
    end
  end
end
if removed > 0 then redis.call('HINCRBY', order, 'messages', -removed) end
if wakes then wake_up() end
return errors
"""
)
"""ARGV group, consumer, ms until a dead letter that cannot be stored is tried again, the number of
runs that are done, tag and lease of each, then for each other run: tag, lease, how many of it are
done, what follows ('done' if nothing does yet, 'retry', 'dead'), and how many arguments that has:
the delay in ms, or the fields of a dead letter.

Removes what is done. If what follows it is to be retried, the key is held; if it is dead, it moves
to the dead letters. A key whose run is over is ready again, if it has more. All this only if the
consumer still has this lease, so that repeating it changes nothing. Returns the errors of dead
letters that could not be stored.
"""

LEAVE = (
    MAILBOXES
    + """
local received = {}
for at = 3, #ARGV, 2 do received[ARGV[at]] = tonumber(ARGV[at + 1]) end
redis.call('HDEL', order, '')
end_leases(ARGV[2], received)
"""
)
"""ARGV group, consumer, then a tag and how many of its run were received, for each.

Gives back everything that a consumer has, and removes the consumer.
"""

PEERS = (
    MAILBOXES
    + """
local peers = {}
for _, consumer in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
  local client = redis.call('HGET', leases .. ':' .. consumer, 'client')
  if consumer ~= ARGV[2] and client and client ~= '' then
    peers[#peers + 1] = {consumer, client}
  end
end
return peers
"""
)
"""ARGV group, consumer. Returns name and client id of each other consumer."""

TAKE_OVER = (
    MAILBOXES
    + """
if redis.call('HGET', leases .. ':' .. ARGV[2], 'client') ~= ARGV[3] then return 0 end
redis.call('HDEL', order, '')
end_leases(ARGV[2])
return 1
"""
)
"""ARGV group, consumer, client id. Gives back what a dead consumer has, unless it has another
connection by now."""

ADOPT = (
    READ
    + MAILBOXES
    + """
local group, silence, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local found, moved = {}, 0
local function add(stream, id, deliveries)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  found[#found + 1] = {
    stream = stream, id = id, ms = tonumber(ms), seq = tonumber(seq),
    fields = entry and entry[2], deliveries = deliveries,
  }
end
for number = 12, #KEYS do
  local stream = KEYS[number]
  for _, pending in ipairs(read('XPENDING', stream, group, '-', '+', limit) or {}) do
    local id, consumer, idle, deliveries = unpack(pending)
    if consumer == 'returned' or idle >= silence then add(stream, id, deliveries) end
  end
end
for _, flat in ipairs(read('XINFO', 'GROUPS', retry) or {}) do
  local state = {}
  for at = 1, #flat, 2 do state[flat[at]] = flat[at + 1] end
  if state['name'] == group then
    local after = '(' .. state['last-delivered-id']
    for _, entry in ipairs(redis.call('XRANGE', retry, after, '+', 'COUNT', limit)) do
      add(retry, entry[1], 0)
    end
  end
end
table.sort(found, function (one, two)
  if (one.stream == retry) ~= (two.stream == retry) then return one.stream == retry end
  if one.ms ~= two.ms then return one.ms < two.ms end
  return one.seq < two.seq
end)
redis.call('HDEL', order, '')
for _, each in ipairs(found) do
  if each.fields then
    put_last(tag_of(each.fields), record_of(each.id, each.fields, each.deliveries))
    moved = moved + 1
  end
  redis.call('XACK', each.stream, group, each.id)
  if each.stream == retry then redis.call('XDEL', retry, each.id) end
end
local waiting = redis.call('ZRANGE', delayed, 0, limit - 1, 'WITHSCORES')
for at = 1, #waiting, 2 do
  local fields, due = {'parcel', waiting[at]}, waiting[at + 1]
  local tag = tag_of(fields)
  if not leased(tag) then
    put_last(tag, record_of(string.format('%.0f-0', now()), fields))
    redis.call('ZREM', ready, tag)
    redis.call('ZADD', held, 'GT', due, tag)
    redis.call('ZREM', delayed, waiting[at])
    moved = moved + 1
  end
end
if moved > 0 then redis.call('HINCRBY', order, 'messages', moved) end
return #found + moved
"""
)
"""ARGV group, idle time in ms, limit.

Moves messages to mailboxes that the subscription has from before it was ordered: those that were
returned or whose consumer died, retries that are due, and delayed ones, which hold their keys until
they are due. Returns 0 if there was nothing to do.
"""

DISSOLVE = (
    MAILBOXES
    + """
local limit = tonumber(ARGV[2])
if redis.call('HGET', order, 'after_dead') or #redis.call('HGETALL', order) == 0 then return 0 end
redis.call('HDEL', order, '')
local function gone(number)
  if redis.call('HGET', order, 'messages') then
    redis.call('HINCRBY', order, 'messages', -number)
  end
end
for _, one in ipairs(redis.call('ZRANGEBYSCORE', consumers, '-inf',
                                string.format('%.0f', now()))) do
  end_leases(one)
end
local waiting = redis.call('ZRANGE', held, 0, limit - 1, 'WITHSCORES')
for at = 1, #waiting, 2 do
  local tag, due = waiting[at], waiting[at + 1]
  if due ~= 'inf' then
    redis.call('ZADD', delayed, due, redis.call('LINDEX', mail .. tag, 0))
    redis.call('LTRIM', mail .. tag, 1, -1)
    gone(1)
  end
  redis.call('ZREM', held, tag)
  make_ready(tag)
end
local moved = 0
for _, tag in ipairs(redis.call('ZRANGE', ready, 0, limit - 1)) do
  local records = redis.call('LRANGE', mail .. tag, 0, limit - moved - 1)
  for _, record in ipairs(records) do
    redis.call('XADD', retry, '*', 'parcel', record)
    moved = moved + 1
  end
  redis.call('LTRIM', mail .. tag, #records, -1)
  gone(#records)
  if redis.call('LLEN', mail .. tag) == 0 then redis.call('ZREM', ready, tag) end
  if moved >= limit then return 1 end
end
if #waiting > 0 then return 1 end
if redis.call('ZCARD', consumers) == 0 then
  redis.call('DEL', order, ready, held, holding, wake, consumers)
end
return 0
"""
)
"""ARGV group, limit.

Moves what is in mailboxes to the retry stream and the delayed set, once the subscription is not
ordered any more. Returns 1 if there is more to move.
"""

ORDER_STATS = (
    MAILBOXES
    + """
local time = now()
local ready_at = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')[2]
local in_flight, delayed_count = 0, 0
for _, consumer in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
  local flat = redis.call('HGETALL', leases .. ':' .. consumer)
  for at = 1, #flat, 2 do
    local number, out, settled = lease(is_tag(flat[at]) and flat[at + 1])
    if number then in_flight = in_flight + out - settled end
  end
end
for _, tag in ipairs(redis.call('ZRANGE', held, 0, -1)) do
  delayed_count = delayed_count + redis.call('LLEN', mail .. tag)
end
local retried = redis.call('ZCOUNT', held, '-inf', '(inf')
local messages = tonumber(redis.call('HGET', order, 'messages') or 0)
return {
  math.max(0, messages - in_flight - delayed_count), delayed_count,
  math.max(0, delayed_count - retried), in_flight,
  ready_at and time - ready_at or -1,
  redis.call('ZCOUNT', consumers, string.format('(%.0f', time), '+inf'),
  redis.call('HGET', order, 'after_dead') and 1 or 0
}
"""
)
"""ARGV group. Returns how many records in mailboxes are ready, delayed, held behind another, in
flight; the age in ms of the oldest ready one, -1 if there is none; how many consumers are alive;
whether the subscription is ordered."""

TAGS = (
    MAILBOXES
    + """
local tags = {}
for _, consumer in ipairs(redis.call('ZRANGE', consumers, 0, -1)) do
  local flat = redis.call('HGETALL', leases .. ':' .. consumer)
  for at = 1, #flat, 2 do
    local number, out, settled = lease(is_tag(flat[at]) and flat[at + 1])
    if number then tags[#tags + 1] = {flat[at], 'ready', out - settled} end
  end
end
for _, tag in ipairs(redis.call('ZRANGE', ready, 0, -1)) do tags[#tags + 1] = {tag, 'ready', 0} end
for _, tag in ipairs(redis.call('ZRANGE', held, 0, -1)) do tags[#tags + 1] = {tag, 'delayed', 0} end
return tags
"""
)
"""ARGV group. Returns each tag that may have records, the state of these, and how many at the head
are in flight instead."""
