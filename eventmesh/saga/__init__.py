"""Workflows across services as data: a definition, a pure transition, and a coordinator."""
