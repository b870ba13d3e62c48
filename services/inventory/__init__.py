"""Inventory: keeps stock, gives it out, and orders more when it runs out."""
