"""Messages as their owners declare them, and the schema versions they promise to keep."""
