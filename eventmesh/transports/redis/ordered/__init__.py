"""Consuming a subscription that keeps the messages of each key in order."""
