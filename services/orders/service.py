"""What `eventmesh worker orders` runs."""

from services.orders.handlers import service
from services.orders.saga import FulfilOrder

service.include(FulfilOrder)

__all__ = ["service"]
