"""EventMesh inside what was built with something else."""
