"""Frozen schemas: the files that say what each published version of a message is."""
