"""Services, their handlers, and the worker that runs them."""
