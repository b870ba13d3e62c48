"""A SQLite file as a transport: for development, tests, and one machine."""
