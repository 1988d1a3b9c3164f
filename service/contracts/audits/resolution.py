"""Terms that an audit adds to a job, and the identity of the model that the worker resolves it to."""

from service.contracts.record import Frozen


class Terms(Frozen):
    """How the model of an audit's job is found, and when it need not be measured. A job with terms is resolved."""

    newest_in: bool = False
    """The request's model is a directory of checkpoints, of which the one made last is measured."""
    fingerprint: str | None = None
    """The weights that must be there, as in report.json; with others the job fails with the code `model-changed`."""
    unless_identity: str | None = None
    """What was measured before: if the job would measure the same, it ends without a measurement."""


class Resolution(Frozen):
    """A model reference resolved: what it stood for when the job ran."""

    model: str
    """`sample`, the absolute path of a directory, or the hub id as it was asked for."""
    revision: str | None = None
    """Commit on the hub; None for a local model."""
    fingerprint: str | None = None
    """Of the weights, as in report.json; None for a model on the hub, which is not fetched for this."""
    identity: str
    """`sha256:...` over the model's files or commit, the texts, the settings, the definitions, the software and the
    machine's hardware."""
