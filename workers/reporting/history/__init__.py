"""The history of an audit as figures, from its record alone."""
