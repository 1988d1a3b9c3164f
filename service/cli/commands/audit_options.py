"""The options that `headroom audits create` and `edit` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from service.cli.options import Calibration, Labelled, Schemes, whole_option


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What was typed; None leaves a key of the audit as it is."""

    newest_in: Annotated[
        Path | None,
        typer.Option("--newest-in", metavar="DIR", help="In place of MODEL: the directory made last inside DIR."),
    ] = None
    scheme: Schemes = None
    calibration: Calibration = None
    labelled: Labelled = None
    sequences: Annotated[
        int | None,
        whole_option("--sequences", "N", "Calibration sequences."),
    ] = None
    sequence_length: Annotated[
        int | None,
        whole_option("--sequence-length", "S", "Tokens in each sequence."),
    ] = None
    seed: Annotated[
        int | None,
        whole_option("--seed", "K", "Seed of the choice of text."),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option("--schedule", metavar="CRON", help='When it runs, such as "0 3 * * *"; without one, when asked.'),
    ] = None
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="IANA time zone of the schedule. Default: UTC.")
    ] = None
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="WHICH", help="last-passing, median:K or report:ID. Default: last-passing."),
    ] = None
    limit: Annotated[
        list[str] | None,
        typer.Option(
            "--limit",
            metavar="LIMIT",
            help='What reports are held to, such as "int8.kl_divergence.mean <= baseline * 1.2". Repeatable.',
        ),
    ] = None
    reruns: Annotated[
        int | None,
        whole_option(
            "--reruns", "N", "Other calibration seeds on which a broken figure is measured again. Default: 1."
        ),
    ] = None
    webhook: Annotated[
        list[str] | None, typer.Option("--webhook", metavar="URL", help="Webhook that gets the alerts. Repeatable.")
    ] = None
    email: Annotated[
        list[str] | None, typer.Option("--email", metavar="ADDRESS", help="Mailbox that gets the alerts. Repeatable.")
    ] = None
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any other key of an audit or a job, such as overlap=queue, llm_int8.magnitude=5 or schedule=null "
            "(the default). Repeatable.",
        ),
    ] = None
