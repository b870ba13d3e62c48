"""Figures on speed that anyone can make again: `python -m benchmarks.transports`."""
