"""What an operator asks for: statistics, unrouted messages, replay of dead letters."""

from __future__ import annotations

from eventmesh.transports.redis.scripts.common import READ, TRY
from eventmesh.transports.redis.scripts.ordering import MAILBOXES

STATS = (
    READ
    + """
local group_name, returned, most, alive_ms = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ready, in_flight, oldest = 0, 0, now + 1
local function see(entries)
  if entries[1] then oldest = math.min(oldest, tonumber(string.match(entries[1][1], '%d+'))) end
end
local consumers, alive, declared = {}, 0, 1
local function meet(stream)
  for _, flat in ipairs(read('XINFO', 'CONSUMERS', stream, group_name) or {}) do
    local consumer = {}
    for at = 1, #flat, 2 do consumer[flat[at]] = flat[at + 1] end
    local name, silence = consumer['name'], tonumber(alive_ms)
    if consumer['pending'] == 0 then silence = math.min(silence, 5000) end
    if name ~= returned and not consumers[name] and consumer['idle'] < silence then
      consumers[name] = true
      alive = alive + 1
    end
  end
end
local function undelivered(number, stream, group)
  if number == #KEYS then return redis.call('XLEN', stream) - group['pending'] end
  if group['lag'] then return group['lag'] end
  return #redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', most)
end
for number, stream in ipairs(KEYS) do
  local group = {['last-delivered-id'] = '0-0', pending = 0}
  for _, flat in ipairs(read('XINFO', 'GROUPS', stream) or {}) do
    local other = {}
    for at = 1, #flat, 2 do other[flat[at]] = flat[at + 1] end
    if other['name'] == group_name then group = other end
  end
  if group['name'] then meet(stream) else declared = 0 end
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
return {ready, in_flight, oldest > now and -1 or now - oldest, alive, declared}
"""
)
"""KEYS streams, the retry stream last; ARGV group, returned, the most entries to count one by one,
ms after which a silent consumer counts as dead; one with nothing pending is heard of every 2 s, so
that it counts as dead after 5 s.

Returns how many entries are ready (undelivered, or returned), how many are in flight, the age in ms
of the oldest ready one, -1 if there is none, how many consumers are alive, and whether every stream
has the group. Redis knows the lag of a group unless somebody deleted entries of the stream; then up
to `most` are counted. Settled entries of the retry stream are deleted, so its length gives the
number.
"""

UNROUTED = (
    READ
    + """
local groups = read('XINFO', 'GROUPS', KEYS[1])
local first = groups and #groups == 0 and redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
if not first then return {0, 0} end
local time = redis.call('TIME')
local age = time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1], '%d+')
return {redis.call('XLEN', KEYS[1]), math.max(age, 0)}
"""
)
"""KEYS stream. Returns how many messages of a stream without groups there are, and the age of the
oldest in ms."""

PURGE_UNROUTED = (
    READ
    + """
local groups = read('XINFO', 'GROUPS', KEYS[1])
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
"""KEYS stream; ARGV how many of the newest to keep, an age in ms or '', about how many to delete.

Deletes the oldest entries of a stream that has no group, whole nodes first; returns how many, 0
once there is nothing left to delete.
"""

REPLAY = (
    TRY
    + MAILBOXES
    + """
local head, edited = ARGV[1], ARGV[2]
local is_ordered = try(order, 'HGET', 'after_dead')
try(dead, 'XDEL', '0-0')
try(retry, 'XDEL', '0-0')
local letters = {}
for at = 3, #ARGV do
  letters[#letters + 1] = redis.call('XRANGE', dead, ARGV[at], ARGV[at])[1]
end
if not letters[1] then return 0 end
local fields, packed = letters[1][2], nil
for at = 1, #fields, 2 do
  if fields[at] == 'envelope' then packed = fields[at + 1] end
end
if edited ~= '' then packed = edited end
if is_ordered then
  local again = packed and {'envelope', packed} or fields
  put_first(tag_of(again), record_of(letters[1][1], again))
elseif packed then
  redis.call('XADD', retry, '*', 'parcel', head .. packed)
elseif #fields < 7000 then
  redis.call('XADD', retry, '*', unpack(fields))
else
  return 0
end
for _, letter in ipairs(letters) do
  redis.call('XDEL', dead, letter[1])
  let_go(letter[2])
end
return 1
"""
)
"""KEYS `Keys.ordering`; ARGV header of the new retry entry, an envelope to deliver instead or '',
ids of a message's dead letters.

Adds the message of the first dead letter that still exists to the retry stream or, if the
subscription is ordered, to its key's mailbox, before everything that nobody has received; and
deletes all of them, in one step. Returns 1, or 0 if none exists. An entry that another program
wrote is replayed with the fields that it has, if a script can pass on so many.
"""

DISCARD = (
    TRY
    + MAILBOXES
    + """
try(dead, 'XDEL', '0-0')
local found = 0
for _, id in ipairs(ARGV) do
  local letter = redis.call('XRANGE', dead, id, id)[1]
  if letter then
    redis.call('XDEL', dead, id)
    let_go(letter[2])
    found = found + 1
  end
end
return found
"""
)
"""KEYS `Keys.ordering`; ARGV ids of dead letters. Deletes them, and releases keys that they hold;
returns how many there were."""
