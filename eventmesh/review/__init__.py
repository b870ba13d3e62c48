"""What is checked before a change ships: versions, the whole mesh, and how it is reported."""
