"""EventMesh inside applications that were built with another framework."""
