"""What the scripts share: how one is called, and Lua functions that several of them use."""

from __future__ import annotations

from collections.abc import Sequence

Command = tuple[str | bytes | int, ...]


def call(script: str, keys: Sequence[str], *arguments: str | bytes | int) -> Command:
    """The command that runs a script."""
    # EVAL, not EVALSHA: Redis caches a script by its hash either way, and EVAL cannot fail with
    # NOSCRIPT in the middle of a MULTI.
    return ("EVAL", script, len(keys), *keys, *arguments)


EVERYTHING = "1000000000"
"""More entries than a consumer can have pending; also an idle time in ms, above any visibility
timeout."""

READ = """
local function read(...)
  local reply = redis.pcall(...)
  if not reply.err then return reply end
  if string.find(reply.err, 'NOGROUP', 1, true) then return nil end
  if string.find(reply.err, 'no such key', 1, true) then return nil end
  if string.find(reply.err, 'WRONGTYPE', 1, true) then return nil end
  return error(reply)
end
"""
"""`read` runs a command that reads, and returns nil if the stream or its group does not exist, or
the key has another type: the script that needs the stream reports that."""

TRY = """
local function try(key, command, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  if not string.find(reply.err, 'WRONGTYPE', 1, true) then return error(reply) end
  return error({err = 'WRONGTYPE the key ' .. key .. ' does not hold what EventMesh keeps there'})
end
"""
"""`try` runs a command; if its key has another type, the error names the key."""
