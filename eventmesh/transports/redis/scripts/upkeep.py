"""What consumers do beside reading: heartbeats, due retries, trimming."""

from __future__ import annotations

from eventmesh.transports.redis.scripts.common import READ, TRY

RESET_IDLE = (
    READ
    + """
local group, consumer = unpack(ARGV, 1, 2)
for at = 3, #ARGV do
  local id = ARGV[at]
  local pending = read('XPENDING', KEYS[1], group, id, id, 1, consumer)
  if not pending then return end
  if #pending == 1 then redis.call('XCLAIM', KEYS[1], group, consumer, 0, id, 'JUSTID') end
end
"""
)
"""KEYS stream; ARGV group, consumer, entry ids.

Resets the idle time of the entries that are still pending under `consumer`, so that nobody claims
them; others were settled or claimed meanwhile. JUSTID leaves the delivery count as it is.
"""

SHOW_ALIVE = (
    READ
    + """
local last = '18446744073709551615-0'
read('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], last)
"""
)
"""KEYS stream; ARGV group, consumer.

Resets the idle time of the consumer itself, by reading what it has pending after the last id that
there can be, which is nothing. Before Redis 7.2, reading new entries does that only if there are
any, so that a consumer for which nothing arrives would look dead.
"""

MOVE_DUE = (
    TRY
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

Moves retries that are due to the retry stream, in the order of their times, also when Redis is out
of memory. Returns the ms until the next is due, -1 if there is none.
"""

TRIM = (
    READ
    + """
local function before(one, other)
  local one_ms, one_seq = string.match(one, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  if #one_ms ~= #other_ms then return #one_ms < #other_ms end
  if one_ms ~= other_ms then return one_ms < other_ms end
  if #one_seq ~= #other_seq then return #one_seq < #other_seq end
  return one_seq < other_seq
end
local groups = read('XINFO', 'GROUPS', KEYS[1])
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

Deletes entries that every group has acknowledged, in whole nodes of the stream and about `limit` at
most; returns how many. Entries that are pending or undelivered in any group stay, and a stream
without groups keeps everything for its first group. Ids are compared as texts: their numbers have
64 bits, Lua's have 53.
"""

DELETE_IDLE_CONSUMERS = (
    READ
    + """
local group, silence = unpack(ARGV)
for _, flat in ipairs(read('XINFO', 'CONSUMERS', KEYS[1], group) or {}) do
  local consumer = {}
  for at = 1, #flat, 2 do consumer[flat[at]] = flat[at + 1] end
  if consumer['pending'] == 0 and consumer['idle'] > tonumber(silence) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group, consumer['name'])
  end
end
"""
)
"""KEYS stream; ARGV group, idle time in ms.

Deletes the consumers that killed processes left behind, never one with entries pending. If one is
alive after all, its next read creates it again.
"""
