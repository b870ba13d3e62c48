"""Counting messages by their attributes, a page at a time, without sending their data."""

from __future__ import annotations

from dataclasses import dataclass

from eventmesh.transports.redis.scripts.common import READ

_COUNT = """
local counts, order, entries, bytes = {}, {}, 0, 0
local function count(state, attributes, size)
  entries, bytes = entries + 1, bytes + size
  local name, schema = attributes['type'] or '', attributes['dataschema'] or ''
  local made_at, source = attributes['time'] or '', attributes['source'] or ''
  local kind = state .. '\\n' .. name .. '\\n' .. schema .. '\\n' .. source
  local lot = counts[kind]
  if not lot then
    lot = {state, name, schema, made_at, 0, source}
    counts[kind] = lot
    order[#order + 1] = lot
  end
  if made_at ~= '' and (lot[4] == '' or made_at < lot[4]) then lot[4] = made_at end
  lot[5] = lot[5] + 1
end
local function texts(attributes)
  local kept = {}
  for _, name in ipairs({'type', 'dataschema', 'time', 'source'}) do
    if type(attributes[name]) == 'string' then kept[name] = attributes[name] end
  end
  return kept
end
"""
"""`count` counts a message by its attributes; `texts` keeps those that it needs."""

_FIND = """
local wanted, order, entries, bytes = {}, {}, 0, 0
for _, each in ipairs(cjson.decode(ARGV[#ARGV])) do wanted[each] = true end
local function count(state, attributes, size)
  entries, bytes = entries + 1, bytes + size
  local key = attributes['partitionkey'] or attributes['subject'] or ''
  if wanted[attributes['id'] or ''] or wanted[attributes['correlationid'] or ''] or wanted[key] then
    local found = {state}
    for name, text in pairs(attributes) do
      found[#found + 1] = name
      found[#found + 1] = text
    end
    order[#order + 1] = found
  end
end
local function texts(attributes)
  local kept = {}
  for name, text in pairs(attributes) do
    if name ~= 'data' and type(text) == 'string' then kept[name] = text end
  end
  return kept
end
"""
"""The same two functions for a search: `order` gets the state and the attributes of messages whose
id, correlation id or key is in the last of ARGV, a JSON list."""

_SEE = """
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
local function opened(record)
  local list = string.match(record, '^[mr] %d+ %d+ %d+%-%d+ (.*)$')
  local good, fields = pcall(cjson.decode, list or '')
  return good and fields or {}
end
local function see(state, entry)
  local fields, flat, size = {}, entry[2], 0
  if flat[1] == 'parcel' and string.match(flat[2], '^[mr] ') then flat = opened(flat[2]) end
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
"""`see` hands `count` the attributes of a stream entry's envelope: the entry's own fields, or those
packed into a retry or a dead letter. `opened` returns the fields in a record of a mailbox."""

GROUP_NAMES = (
    READ
    + """
local names = {}
for _, flat in ipairs(read('XINFO', 'GROUPS', KEYS[1]) or {}) do
  for at = 1, #flat, 2 do
    if flat[at] == 'name' then names[#names + 1] = flat[at + 1] end
  end
end
return names
"""
)
"""KEYS stream; returns the names of its groups."""

GROUP_POSITION = (
    READ
    + """
local delivered = '0-0'
for _, flat in ipairs(read('XINFO', 'GROUPS', KEYS[1]) or {}) do
  local group = {}
  for at = 1, #flat, 2 do group[flat[at]] = flat[at + 1] end
  if group['name'] == ARGV[1] then delivered = group['last-delivered-id'] end
end
return {delivered, redis.call('XLEN', KEYS[1])}
"""
)
"""KEYS stream; ARGV group. Returns the group's last delivered id, and the length of the stream."""


@dataclass(frozen=True, slots=True)
class PageScripts:
    """Four scripts, each of which reads a page: of a stream from an id on, of what is pending in
    it, of the delayed set, and of a mailbox. `order`, which they return last, is what was made of
    the messages: counts, as {state, type, dataschema, earliest time, number, source}; or of a
    search {state, name and text of each attribute}."""

    range: str
    pending: str
    delayed: str
    mailbox: str

    @classmethod
    def of(cls, what: str) -> PageScripts:
        """The scripts that do this with each message."""
        return cls(
            READ + what + _SEE + _RANGE,
            READ + what + _SEE + _PENDING,
            what + _SEE + _DELAYED,
            what + _SEE + _MAILBOX,
        )


_RANGE = """
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
for _, entry in ipairs(page) do see(ARGV[3], entry) end
return {page[1] and '(' .. page[#page][1] or ARGV[1], {entries, bytes}, order}
"""
"""KEYS stream; ARGV first id, entries at most, state.

Returns the start of the next page, {entries, bytes}, and `order`.
"""

_PENDING = """
local group, returned, start, delivered, most = unpack(ARGV)
local page = read('XPENDING', KEYS[1], group, start, delivered, most) or {}
for _, pending in ipairs(page) do
  local entry = redis.call('XRANGE', KEYS[1], pending[1], pending[1])[1]
  if entry then see(pending[2] == returned and 'ready' or 'in_flight', entry) end
end
return {page[1] and '(' .. page[#page][1] or '', {entries, bytes}, order}
"""
"""KEYS stream; ARGV group, returned, first id, last id, entries at most.

Reads pending entries; returns the same as _RANGE, with no next page after the last one.
"""

_DELAYED = """
local due, beyond, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local page = redis.call('ZRANGEBYSCORE', KEYS[1], due, '+inf', 'WITHSCORES',
                        'LIMIT', beyond, most)
for at = 1, #page, 2 do
  see('delayed', {'', {'parcel', page[at]}})
  if page[at + 1] == due then
    beyond = beyond + 1
  else
    due, beyond = page[at + 1], 1
  end
end
return {#page == 2 * most and due or '', beyond, {entries, bytes}, order}
"""
"""KEYS delayed set; ARGV time, how many members with that time to skip, members at most.

Returns time and number to skip for the next page (no time after the last one), then the same as
_RANGE.
"""

_MAILBOX = """
local key, state = KEYS[1] .. ARGV[1], ARGV[2]
local out, seen, most = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local first = math.max(0, redis.call('LLEN', key) - seen - most)
local page = redis.call('LRANGE', key, -seen - most, -seen - 1)
for place, record in ipairs(page) do
  see(first + place <= out and 'in_flight' or state, {'', opened(record)})
end
return {#page == most and seen + most or -1, {entries, bytes}, order}
"""
"""KEYS `mail`; ARGV tag, state, how many at the head are in flight, how many at the end to skip,
records at most.

Reads backwards, because settled records leave at the head: so none is missed. Returns how many to
skip for the next page, -1 after the last one, then the same as _RANGE.
"""

COUNT = PageScripts.of(_COUNT)
FIND = PageScripts.of(_FIND)
"""Their last argument is a JSON list of ids, correlation ids and keys."""
