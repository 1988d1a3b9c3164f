"""The artifact store beside its database: whether they belong together, and which files are still needed."""
