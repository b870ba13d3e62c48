"""Reading a schema: checked, in one normal form, and as plain alternatives."""
