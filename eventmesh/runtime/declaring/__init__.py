"""What users write: services, their handlers and their settings, and how they are found by name."""
