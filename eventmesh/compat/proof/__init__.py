"""Proving that one schema accepts every document that another accepts."""
