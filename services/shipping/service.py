"""What `eventmesh worker shipping` runs."""

from services.shipping.handlers import service

__all__ = ["service"]
