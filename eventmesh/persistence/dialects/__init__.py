"""What differs between PostgreSQL, MariaDB and SQLite: nothing outside this folder asks which."""
