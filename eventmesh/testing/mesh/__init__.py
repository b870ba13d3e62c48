"""A mesh of services in one test: see `Mesh`."""

from eventmesh.testing.mesh.base import Mesh, SagaView
from eventmesh.testing.mesh.real_servers import MeshServers

__all__ = ["Mesh", "MeshServers", "SagaView"]
