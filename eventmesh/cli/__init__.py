"""The commands: each file one group, thin, importing what it runs only when it runs."""
