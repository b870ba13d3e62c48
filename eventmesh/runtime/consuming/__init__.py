"""Consuming: the worker, which takes batches from a broker and brings them through the handlers."""
