"""Shipping: sends parcels, and tells everybody."""
