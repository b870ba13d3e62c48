"""Adding a batch in which nothing overtakes a rejected message of its key."""

from __future__ import annotations

PUBLISH = """#!lua
local refused, held = {}, {}
local floor_ms, floor_seq = string.match(ARGV[1], '(%d+)-(%d+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function add(stream, first, last)
  if last - first >= 7000 then
    return {err = 'ERR more attributes than a Lua script can pass on'}
  end
  local ahead = tonumber(floor_ms) - now
  if ahead >= 0 and ahead < 60000 and #floor_seq < 15 then
    local id = floor_ms .. '-' .. string.format('%.0f', floor_seq + 1)
    local reply = redis.pcall('XADD', stream, id, unpack(ARGV, first, last))
    if type(reply) ~= 'table' or not string.find(reply.err, 'equal or smaller', 1, true) then
      return reply
    end
  end
  return redis.pcall('XADD', stream, '*', unpack(ARGV, first, last))
end
local at, place = 2, 1
while ARGV[at] do
  local stream, key = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
  local last = at + 2 + ARGV[at + 2]
  if held[key] then
    refused[#refused + 1] = {place, ''}
  else
    local reply = add(stream, at + 3, last)
    if type(reply) == 'table' and reply.err then
      refused[#refused + 1] = {place, reply.err}
      held[key] = key ~= '0'
    else
      floor_ms, floor_seq = string.match(reply, '(%d+)-(%d+)')
    end
  end
  at, place = last + 1, place + 1
end
return {refused, floor_ms .. '-' .. floor_seq}
"""
"""KEYS streams; ARGV an id, then for each message: the index of its stream, a number for its key,
how many arguments its fields have, and these. The key number of a message without a key is 0.

Adds the messages in order, except those that Redis rejects and later ones of the same key. Their
ids grow from one to the next, also between streams, and begin after the given one. Where Redis's
clock would not give such an id, the next possible one is used, unless the stream is further; but
ids that are a minute ahead of the clock are somebody's mistake, which must not spread.
Returns {message's index, error} for each message that was not added, and the last id; the error is
empty if a message was not tried.

With `#!lua`, Redis does not start the script when it would reject every write (out of memory, or
too few replicas): that is not a rejection of single messages.
"""
