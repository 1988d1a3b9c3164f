"""Judges whether harms of single parts say what several do together."""

ADDITIVE = (0.8, 1.25)
"""The whole scheme's divergence over the sum of its parts' harms, within which they add up."""


def adds_up(additivity: float | None) -> bool:
    """Whether the parts' harms add up to the whole's, or nothing is known of it."""
    return additivity is None or ADDITIVE[0] <= additivity <= ADDITIVE[1]
