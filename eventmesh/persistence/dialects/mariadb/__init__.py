"""MariaDB: its URLs, engine and statements."""
