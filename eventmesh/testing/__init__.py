"""What authors of services and of transports test with. No test framework is imported here."""
