"""`eventmesh demo`: real purchases through the four services, and the proof that all came out."""
