"""The record of how many slots a prefix is spread over."""

from __future__ import annotations

SLOTS = """
local slots = redis.call('HGET', KEYS[1], 'slots')
if slots then return slots end
redis.call('HSET', KEYS[1], 'slots', ARGV[1])
return ARGV[1]
"""
"""KEYS `Layout.record`; ARGV a number of slots, which is recorded unless there is a record. Returns
the recorded number."""
