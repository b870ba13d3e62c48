"""Payments: takes money from cards, up to a limit."""
