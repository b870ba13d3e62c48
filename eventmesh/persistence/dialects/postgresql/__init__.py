"""PostgreSQL: its URLs, engine, connections, poolers and statements."""
