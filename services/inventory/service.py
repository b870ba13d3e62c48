"""What `eventmesh worker inventory` runs."""

from services.inventory.handlers import service

__all__ = ["service"]
