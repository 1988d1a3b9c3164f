"""One module per figure, one style for all, one registry."""
