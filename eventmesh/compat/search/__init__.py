"""Searching for a document that one schema accepts and another rejects."""
