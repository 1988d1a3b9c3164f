"""Facts about a gate that its written outcomes state beside the run."""

from collections.abc import Mapping
from typing import NamedTuple

from service.contracts.audits.audit import AuditRun


class Gated(NamedTuple):
    """A gate that has ended."""

    model: str
    """As it was typed."""
    baseline: str
    """What it was compared with, in a few words."""
    run: AuditRun
    limits_file: str
    """Path of the file with the limits, as it was typed."""
    lines: Mapping[str, int]
    """Line of every limit in it, from 1."""
    version: str
    """Of Headroom."""
    cautions: tuple[str, ...] = ()
    """Why limits against the baseline mean little, where somebody insisted on it; sentences."""
