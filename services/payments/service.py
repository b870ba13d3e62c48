"""What `eventmesh worker payments` runs."""

from services.payments import loyalty
from services.payments.handlers import service

__all__ = ["loyalty", "service"]
