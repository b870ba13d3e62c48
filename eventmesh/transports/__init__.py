"""Broker adapters, all behind the one protocol of `base`."""
