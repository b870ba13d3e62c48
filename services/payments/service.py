"""What `eventmesh worker payments` runs."""

from services.payments.handlers import service

__all__ = ["service"]
