"""Tools for tests of services and transports. No test framework is imported here."""
