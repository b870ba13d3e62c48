"""Reading a subscription: its groups, claiming entries, and returning them."""

from __future__ import annotations

from eventmesh.transports.redis.scripts.common import READ, TRY

DECLARE = (
    READ
    + TRY
    + """
for _, stream in ipairs(KEYS) do
  if not read('XINFO', 'CONSUMERS', stream, ARGV[1]) then
    try(stream, 'XLEN')
    redis.call('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM')
  end
end
"""
)
"""KEYS streams; ARGV group.

Creates the group on every stream, starting at the beginning of the stream. Existing groups are
looked up first: a Redis that is out of memory rejects XGROUP CREATE even for a group that exists,
and that is when consumers must be able to reconnect and empty the streams.
"""

CLAIM = (
    READ
    + """
local group, consumer, returned, room, silence = unpack(ARGV, 1, 5)
room = tonumber(room)
local claimed = {}
local function take(number, stream, pending)
  for _, entry in ipairs(pending or {}) do
    local got = redis.call('XCLAIM', stream, group, consumer, 0, entry[1])
    if got[1] then
      claimed[#claimed + 1] = {number - 1, entry[4] + 1, got[1]}
      room = room - 1
    end
  end
end
for number, stream in ipairs(KEYS) do
  if room > 0 then
    take(number, stream, read('XPENDING', stream, group, '-', '+', room, returned))
  end
  if room > 0 and silence ~= '' then
    take(number, stream, read('XPENDING', stream, group, 'IDLE', silence, '-', '+', room))
  end
end
return claimed
"""
)
"""KEYS streams; ARGV group, consumer, returned, room, idle time in ms or ''.

Claims, oldest first and at most `room`: entries that were returned and, if an idle time is given,
entries whose consumer has not reset their idle time for that long. Returns {stream's index,
deliveries, entry} for each. An entry is claimed by one consumer only, and counts one delivery more.
Deleted entries are left out. A missing group is ignored; the next read reports it.
"""

RETURN_PENDING = (
    READ
    + """
local group, consumer, returned, all, leaving = unpack(ARGV, 1, 5)
local known = {}
for at = 6, #ARGV do known[ARGV[at]] = true end
for number, stream in ipairs(KEYS) do
  local pending = read('XPENDING', stream, group, '-', '+', all, consumer)
  if pending then
    for _, entry in ipairs(pending) do
      local held = known[(number - 1) .. ' ' .. entry[1]]
      if leaving ~= '' or not held then
        redis.call('XCLAIM', stream, group, returned, 0, entry[1],
                   'IDLE', all, 'RETRYCOUNT', held and entry[4] or entry[4] - 1, 'JUSTID')
      end
    end
    if leaving ~= '' and #redis.call('XPENDING', stream, group, '-', '+', 1, consumer) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer)
    end
  end
end
"""
)
"""KEYS streams; ARGV group, consumer, returned, EVERYTHING, 'leaving' or '', then 'stream's index,
space, entry id' for each entry that was handed to the worker.

Leaving: all entries pending under `consumer` become pending under `returned`, and the consumer is
deleted, but only once it has nothing pending, because deleting a consumer deletes its pending
entries. An entry that was not handed to the worker does not count as delivered.

Not leaving: the same only for entries that were not handed to the worker, such as those that Redis
sent to a lost connection; the consumer goes on.
"""
