"""What EventMesh stores in a service's own database, in the service's own transactions."""
