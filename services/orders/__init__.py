"""Orders: takes orders and sees each of them to exactly one end."""
