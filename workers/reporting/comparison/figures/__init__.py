"""The figures of a comparison, in the house style of those of a report."""
