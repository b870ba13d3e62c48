"""Logs, Prometheus metrics, and the HTTP probes of a worker."""
