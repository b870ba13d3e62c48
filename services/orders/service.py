"""What `eventmesh worker orders` runs."""

from services.orders import approvals
from services.orders.handlers import service
from services.orders.saga import fulfil

service.include(fulfil)

__all__ = ["approvals", "service"]
