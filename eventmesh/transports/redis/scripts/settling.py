"""Settling entries that a consumer has pending."""

from __future__ import annotations

from eventmesh.transports.redis.scripts.common import READ, TRY

ACKNOWLEDGE_AND_DELETE = """
for at = 2, #ARGV do
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[at])
  redis.call('XDEL', KEYS[1], ARGV[at])
end
"""
"""KEYS retry stream; ARGV group, entry ids.

Acknowledges entries of a stream that only this group reads, and deletes them.
"""

MOVE = (
    READ
    + TRY
    + """
local stream, retry, target = unpack(KEYS)
local group, consumer, id, delay = unpack(ARGV, 1, 4)
local pending = read('XPENDING', stream, group, id, id, 1, consumer)
if pending and #pending == 0 then return 0 end
if not pending and #(read('XRANGE', stream, id, id) or {}) > 0 then return 0 end
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
"""KEYS stream, retry stream, target; ARGV group, consumer, entry id, delay in ms or '', then the
fields of an entry (no delay) or the member of a sorted set (delay).

Adds the entry's successor to the target and acknowledges the entry, in one step. Does nothing if
the entry is no longer pending under `consumer`. If the stream was deleted, no other consumer can
have the entry, and the successor is added; if only the group was deleted, the next group reads the
entry again, and nothing is done. The delay is rounded up: a retry is never early.

The member of a sorted set contains an id of its own (see `entries.parcel_header`), so removing it
first, as the check described above, changes nothing.
"""
