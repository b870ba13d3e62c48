"""The Lua that runs inside Redis, for what must be one step. Redis runs a script as a whole, with
nothing in between, so each of these either sees and leaves a consistent state or none.

Redis does not undo what a script has written when a later command of it fails. So what could fail
comes first: a script that moves something begins with a command that writes to the same keys and
changes nothing, such as the deletion of an entry that cannot exist (0-0). It fails where a key is
of another type, where our user may not write, where replicas are missing or the disk is full; and
once a script has written, Redis no longer refuses it memory. Then the script adds the new before it
removes the old: should it fail in between all the same, a message is there twice, and never lost.

KEYS and ARGV are listed with each. `group` is the consumer group of a subscription, `me` the name
of a consumer in it, and `returned` the name under which a consumer that leaves puts down what it
did not settle. Times are Redis's own, so that the clocks of the workers need not agree.
"""

from __future__ import annotations

from collections.abc import Sequence

Command = tuple[str | bytes | int, ...]


def call(script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
    """The command that runs a script."""
    # EVAL and not EVALSHA: Redis knows the text by its hash anyway, and there is no NOSCRIPT to
    # be met in the middle of a MULTI.
    return ("EVAL", script, len(keys), *keys, *arguments)


EVERYTHING = "1000000000"
"""More than a consumer can have pending; also an idle time, in ms, above any visibility timeout."""

_LOOK = """
local function look(...)
  local reply = redis.pcall(...)
  if not reply.err then return reply end
  if string.find(reply.err, 'NOGROUP', 1, true) then return nil end
  if string.find(reply.err, 'no such key', 1, true) then return nil end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return nil end
  return error(reply)
end
"""
"""`look` is the reply of a command that reads, nothing where the stream or its group is missing, or
where something else is in its place: whoever needs the stream finds out."""

_TRY = """
local function try(key, command, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return error(reply) end
  return error({err = 'WRONGTYPE the key ' .. key .. ' does not hold what EventMesh keeps there'})
end
"""
"""`try` is the reply of a command; where its key is of another type, the error names it."""

DECLARE = (
    _LOOK
    + _TRY
    + """
for _, stream in ipairs(KEYS) do
  if not look('XINFO', 'CONSUMERS', stream, ARGV[1]) then
    try(stream, 'XLEN')
    redis.call('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM')
  end
end
"""
)
"""KEYS streams; ARGV group.

Every stream has the group, at its beginning where it is new. Looked up first, because a Redis that
is out of memory refuses XGROUP CREATE even for a group that is there, and then of all times the
consumers must come back to empty the streams.
"""

PUBLISH = """#!lua
local refused, held = {}, {}
local at, place = 1, 1
while ARGV[at] do
  local stream, key = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
  local last = at + 2 + ARGV[at + 2]
  if held[key] then
    refused[#refused + 1] = {place, ''}
  else
    local reply = {err = 'ERR more attributes than a Lua script can pass on'}
    if last - at < 7000 then
      reply = redis.pcall('XADD', stream, '*', unpack(ARGV, at + 3, last))
    end
    if type(reply) == 'table' and reply.err then
      refused[#refused + 1] = {place, reply.err}
      held[key] = key ~= '0'
    end
  end
  at, place = last + 1, place + 1
end
return refused
"""
"""KEYS streams; ARGV of each message: its stream's index, its key's number, how many parts its
fields have, and these. A message without a key has 0 for it.

Adds them in their order, but for those that are refused and those after one of their key that is.
Returns {message's index, error} of what is not added; the error is nothing where it was not tried.

With `#!lua` Redis does not begin where it would refuse every addition (it is out of memory, say,
or short of replicas): those are no refusals of messages.
"""

CLAIM = (
    _LOOK
    + """
local group, me, returned, room, silence = unpack(ARGV, 1, 5)
room = tonumber(room)
local claimed = {}
local function take(number, stream, pending)
  for _, entry in ipairs(pending or {}) do
    local got = redis.call('XCLAIM', stream, group, me, 0, entry[1])
    if got[1] then
      claimed[#claimed + 1] = {number - 1, entry[4] + 1, got[1]}
      room = room - 1
    end
  end
end
for number, stream in ipairs(KEYS) do
  if room > 0 then
    take(number, stream, look('XPENDING', stream, group, '-', '+', room, returned))
  end
  if room > 0 and silence ~= '' then
    take(number, stream, look('XPENDING', stream, group, 'IDLE', silence, '-', '+', room))
  end
end
return claimed
"""
)
"""KEYS streams; ARGV group, me, returned, room, silence in ms or nothing.

Takes over, oldest first and at most `room`: what was given back and, if `silence` is given, what
nobody has shown a sign of life for that long. Returns {stream's index, deliveries, entry} of each:
one taken over is never taken by two, and counts one delivery more. What was deleted meanwhile is
left out, and a group that is missing is passed over: the reader finds out.
"""

GIVE_BACK = (
    _LOOK
    + """
local group, me, returned, all, leaving = unpack(ARGV, 1, 5)
local known = {}
for at = 6, #ARGV do known[ARGV[at]] = true end
for number, stream in ipairs(KEYS) do
  local pending = look('XPENDING', stream, group, '-', '+', all, me)
  if pending then
    for _, entry in ipairs(pending) do
      local held = known[(number - 1) .. ' ' .. entry[1]]
      if leaving ~= '' or not held then
        redis.call('XCLAIM', stream, group, returned, 0, entry[1],
                   'IDLE', all, 'RETRYCOUNT', held and entry[4] or entry[4] - 1, 'JUSTID')
      end
    end
    if leaving ~= '' and #redis.call('XPENDING', stream, group, '-', '+', 1, me) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, me)
    end
  end
end
"""
)
"""KEYS streams; ARGV group, me, returned, `EVERYTHING`, `leaving` or nothing, then 'stream's index,
space, entry id' of what is held.

Leaving: all that is pending under `me` is pending under `returned` now, and `me` is deleted, only
where nothing was left, because deleting a consumer deletes what it has pending. What is held was
handed out; the rest, of which `me` may never have heard, does not count as delivered.

Not leaving: the same for the rest only, and `me` goes on with what is held.
"""

KEEP = (
    _LOOK
    + """
local group, me = unpack(ARGV, 1, 2)
for at = 3, #ARGV do
  local id = ARGV[at]
  local pending = look('XPENDING', KEYS[1], group, id, id, 1, me)
  if not pending then return end
  if #pending == 1 then redis.call('XCLAIM', KEYS[1], group, me, 0, id, 'JUSTID') end
end
"""
)
"""KEYS stream; ARGV group, me, entry ids.

Restarts the idle time of these entries as far as they are still pending under `me`: what was
settled or taken over meanwhile stays so. JUSTID leaves the number of deliveries as it is.
"""

FINISH = """
for at = 2, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[at])
  redis.call('XDEL', KEYS[1], ARGV[at])
end
"""
"""KEYS retry stream; ARGV group, entry ids.

Acknowledges entries of a stream that nobody else reads, and deletes them.
"""

RESETTLE = (
    _LOOK
    + _TRY
    + """
local stream, retry, target = unpack(KEYS)
local group, me, id, delay = unpack(ARGV, 1, 4)
local pending = look('XPENDING', stream, group, id, id, 1, me)
if pending and #pending == 0 then return 0 end
if not pending and #(look('XRANGE', stream, id, id) or {}) > 0 then return 0 end
if delay == '' then
  try(target, 'XDEL', '0-0')
  redis.call('XADD', target, '*', unpack(ARGV, 5))
else
  local time = redis.call('TIME')
  local due = time[1] * 1000 + math.ceil(time[2] / 1000) + delay
  try(target, 'ZREM', ARGV[5])
  redis.call('ZADD', target, string.format('%.0f', due), ARGV[5])
end
if pending then
  redis.call('XACK', stream, group, id)
  if stream == retry then redis.call('XDEL', stream, id) end
end
return 1
"""
)
"""KEYS stream, retry stream, target; ARGV group, me, entry id, delay in ms or nothing, then the
fields of an entry (no delay) or the member of a sorted set (delay).

Puts the successor of an entry into the target and acknowledges the entry in one step, or, when it
is no longer pending under `me`, does nothing. Where its stream was deleted, nobody else can have
the entry, and its successor is kept; where only the group was, the next group is given the entry
again. A delay is rounded up: never early.

The member of a sorted set has an id of its own (see `redis_entries.head`), so that removing it
beforehand changes nothing.
"""

MOVE_DUE = (
    _TRY
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = try(KEYS[1], 'ZRANGEBYSCORE', '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])
if #due > 0 then
  try(KEYS[1], 'ZREM', ARGV[2])
  try(KEYS[2], 'XDEL', '0-0')
end
for _, parcel in ipairs(due) do
  redis.call('XADD', KEYS[2], '*', 'parcel', parcel)
  redis.call('ZREM', KEYS[1], parcel)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if #first == 0 then return -1 end
return math.min(math.max(0, first[2] - now), 1e9)
"""
)
"""KEYS delayed set, retry stream; ARGV limit, a text that is not a member of the set.

Moves the retries that are due, in the order of their times, also when Redis is out of memory;
returns the ms until the next is due, -1 if there is none.
"""

TRIM = (
    _LOOK
    + """
local function before(one, other)
  local one_ms, one_seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  if #one_ms ~= #other_ms then return #one_ms < #other_ms end
  if one_ms ~= other_ms then return one_ms < other_ms end
  if #one_seq ~= #other_seq then return #one_seq < #other_seq end
  return one_seq < other_seq
end
local groups = look('XINFO', 'GROUPS', KEYS[1])
if not groups then return 0 end
local needed
for _, flat in ipairs(groups) do
  local group = {}
  for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
  local first = group['last-delivered-id']
  if group['pending'] > 0 then first = redis.call('XPENDING', KEYS[1], group['name'])[2] end
  if not needed or before(first, needed) then needed = first end
end
if not needed then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', needed, 'LIMIT', ARGV[1])
"""
)
"""KEYS stream; ARGV limit.

Deletes entries that every group has acknowledged, whole nodes of the stream at a time, and about
`limit` at most; returns how many. Nothing pending or undelivered in any group is touched, and a
stream without groups keeps all for the first. Ids are compared as texts: their numbers have 64
bits, Lua's 53.
"""

UNROUTED = (
    _LOOK
    + """
local groups = look('XINFO', 'GROUPS', KEYS[1])
local first = groups and #groups == 0 and redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return {0, 0} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1], '%d+')
return {redis.call('XLEN', KEYS[1]), math.max(age, 0)}
"""
)
"""KEYS stream. Returns how many messages no group is to get, and the age in ms of the oldest."""

PURGE_UNROUTED = (
    _LOOK
    + """
local groups = look('XINFO', 'GROUPS', KEYS[1])
if not groups or #groups > 0 then return 0 end
local keep, older_ms, limit = unpack(ARGV)
local rule, bound = 'MAXLEN', keep
if older_ms ~= '' then
  local time = redis.call('TIME')
  local before = time[1] * 1000 + math.floor(time[2] / 1000) - older_ms
  rule, bound = 'MINID', string.format('%.0f', math.max(before, 0))
end
local purged = redis.call('XTRIM', KEYS[1], rule, '~', bound, 'LIMIT', limit)
if purged > 0 then return purged end
return redis.call('XTRIM', KEYS[1], rule, bound)
"""
)
"""KEYS stream; ARGV how many of the newest to keep, or an age in ms, about how many to delete.

Deletes the oldest messages of a stream that has no group, first whole nodes of it; returns how
many, 0 once nothing more is to be deleted.
"""

FORGET = (
    _LOOK
    + """
local group, silence = unpack(ARGV)
for _, flat in ipairs(look('XINFO', 'CONSUMERS', KEYS[1], group) or {}) do
  local consumer = {}
  for at = 1, #flat, 2 do consumer[flat[at]] = flat[at + 1] end
  if consumer['pending'] == 0 and consumer['idle'] > tonumber(silence) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, consumer['name'])
  end
end
"""
)
"""KEYS stream; ARGV group, silence in ms.

Deletes the consumers that killed processes left behind. Never one with anything pending; one that
lives after all is made anew by its next read.
"""

STATS = (
    _LOOK
    + """
local group_name, returned, most = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ready, in_flight, oldest = 0, 0, now + 1
local function see(entries)
  if entries[1] then oldest = math.min(oldest, tonumber(string.match(entries[1][1], '%d+'))) end
end
local function undelivered(number, stream, group)
  if number == #KEYS then return redis.call('XLEN', stream) - group['pending'] end
  if group['lag'] then return group['lag'] end
  return #redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', most)
end
for number, stream in ipairs(KEYS) do
  local group = {['last-delivered-id'] = '0-0', pending = 0}
  for _, flat in ipairs(look('XINFO', 'GROUPS', stream) or {}) do
    local other = {}
    for at = 1, #flat, 2 do other[flat[at]] = flat[at + 1] end
    if other['name'] == group_name then group = other end
  end
  ready = ready + undelivered(number, stream, group)
  see(redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1))
  in_flight = in_flight + group['pending']
  if group['pending'] > 0 then
    for _, holder in ipairs(redis.call('XPENDING', stream, group_name)[4]) do
      if holder[1] == returned then
        ready = ready + holder[2]
        in_flight = in_flight - holder[2]
        see(redis.call('XPENDING', stream, group_name, '-', '+', 1, returned))
      end
    end
  end
end
return {ready, in_flight, oldest > now and -1 or now - oldest}
"""
)
"""KEYS streams, the retry stream last; ARGV group, returned, the most to count one by one.

Returns how many are ready (undelivered or given back), how many are in flight, and the age in ms
of the oldest that is ready, -1 if none is. Redis knows a group's lag unless somebody deleted from
the stream; then up to `most` are counted. In the retry stream, what was settled is deleted, so its
length tells.
"""

REPLAY = (
    _TRY
    + """
local dead, retry, head = KEYS[1], KEYS[2], ARGV[1]
try(dead, 'XDEL', '0-0')
try(retry, 'XDEL', '0-0')
local letter
for at = 2, #ARGV do
  letter = letter or redis.call('XRANGE', dead, ARGV[at], ARGV[at])[1]
end
if not letter then return 0 end
local fields, packed = letter[2], nil
for at = 1, #fields, 2 do
  if fields[at] == 'envelope' then packed = fields[at + 1] end
end
if packed then
  redis.call('XADD', retry, '*', 'parcel', head .. packed)
elseif #fields < 7000 then
  redis.call('XADD', retry, '*', unpack(fields))
else
  return 0
end
for at = 2, #ARGV do redis.call('XDEL', dead, ARGV[at]) end
return 1
"""
)
"""KEYS dead letters, retry stream; ARGV head of the new parcel, ids of a message's dead letters.

Gives the message of the first that is still there back and deletes all of them in one step; returns
1, or 0 where none is there. What others have put among the dead letters goes back with the fields
that it has, as far as a script can pass on so many.
"""

_TALLY = """
local counts, order, entries, bytes = {}, {}, 0, 0
local function count(state, attributes, size)
  entries, bytes = entries + 1, bytes + size
  local name, schema = attributes['type'] or '', attributes['dataschema'] or ''
  local made_at = attributes['time'] or ''
  local kind = state .. '\\n' .. name .. '\\n' .. schema
  local lot = counts[kind]
  if not lot then
    lot = {state, name, schema, made_at, 0}
    counts[kind] = lot
    order[#order + 1] = lot
  end
  if made_at ~= '' and (lot[4] == '' or made_at < lot[4]) then lot[4] = made_at end
  lot[5] = lot[5] + 1
end
local function texts(attributes)
  local kept = {}
  for _, name in ipairs({'type', 'dataschema', 'time'}) do
    if type(attributes[name]) == 'string' then kept[name] = attributes[name] end
  end
  return kept
end
local function packed(content, line)
  for _ = 1, line do
    local feed = string.find(content, '\\n', 1, true)
    if not feed then return {} end
    content = string.sub(content, feed + 1)
  end
  local feed = string.find(content, '\\n', 1, true)
  local good, attributes = pcall(cjson.decode, string.sub(content, 1, (feed or 0) - 1))
  if not good or type(attributes) ~= 'table' then return {} end
  return texts(attributes)
end
local function see(state, entry)
  local fields, flat, size = {}, entry[2], 0
  for at = 1, #flat, 2 do
    fields[flat[at]] = flat[at + 1]
    size = size + #flat[at + 1]
  end
  if flat[1] == 'parcel' then
    count(state, packed(flat[2], 1), size)
  elseif flat[1] == 'envelope' then
    count(state, packed(flat[2], 0), size)
  else
    count(state, texts(fields), size)
  end
end
"""
"""`see` counts an entry of a stream by the attributes of its envelope, which is the entry itself,
or packed into a parcel or a dead letter."""

GROUPS = (
    _LOOK
    + """
local names = {}
for _, flat in ipairs(look('XINFO', 'GROUPS', KEYS[1]) or {}) do
  for at = 1, #flat, 2 do
    if flat[at] == 'name' then names[#names + 1] = flat[at + 1] end
  end
end
return names
"""
)
"""KEYS stream; returns the names of its groups."""

PLACE = (
    _LOOK
    + """
local delivered = '0-0'
for _, flat in ipairs(look('XINFO', 'GROUPS', KEYS[1]) or {}) do
  local group = {}
  for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
  if group['name'] == ARGV[1] then delivered = group['last-delivered-id'] end
end
return {delivered, redis.call('XLEN', KEYS[1])}
"""
)
"""KEYS stream; ARGV group. Returns the id up to which the group was delivered, and the length."""

TALLY_RANGE = (
    _LOOK
    + _TALLY
    + """
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(page) do see(ARGV[3], entry) end
return {page[1] and '(' .. page[#page][1] or ARGV[1], {entries, bytes}, order}
"""
)
"""KEYS stream; ARGV first id, entries at most, state.

Returns where the next page begins, {entries, bytes}, and counts as {state, type, dataschema,
earliest time, number}.
"""

TALLY_PENDING = (
    _LOOK
    + _TALLY
    + """
local group, returned, start, delivered, most = unpack(ARGV)
local page = look('XPENDING', KEYS[1], group, start, delivered, most) or {}
for _, pending in ipairs(page) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  if entry then see(pending[2] == returned and 'ready' or 'in_flight', entry) end
end
return {page[1] and '(' .. page[#page][1] or '', {entries, bytes}, order}
"""
)
"""KEYS stream; ARGV group, returned, first id, last id, entries at most. Returns as TALLY_RANGE
what of these is pending, and no next page after the last one."""

TALLY_DELAYED = (
    _TALLY
    + """
local due, beyond, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local page = redis.call('ZRANGEBYSCORE', KEYS[1], due, '+inf', 'WITHSCORES',
                        'LIMIT', beyond, most)
for at = 1, #page, 2 do
  count('delayed', packed(page[at], 1), #page[at])
  if page[at + 1] == due then
    beyond = beyond + 1
  else
    due, beyond = page[at + 1], 1
  end
end
return {#page == 2 * most and due or '', beyond, {entries, bytes}, order}
"""
)
"""KEYS delayed set; ARGV time, how many of that time to pass over, members at most. Returns time
and number for the next page, no time after the last one, then as TALLY_RANGE."""
