"""Relaying: what transactions have put into the outbox is published, in the order of its keys."""
