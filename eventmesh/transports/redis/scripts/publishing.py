"""Adding a batch in which nothing overtakes a rejected message of its key."""

from __future__ import annotations

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
"""KEYS streams; ARGV for each message: the index of its stream, a number for its key, how many
arguments its fields have, and these. The key number of a message without a key is 0.

Adds the messages in order, except those that Redis rejects and later ones of the same key. Returns
{message's index, error} for each message that was not added; the error is empty if it was not
tried.

With `#!lua`, Redis does not start the script when it would reject every write (out of memory, or
too few replicas): that is not a rejection of single messages.
"""
