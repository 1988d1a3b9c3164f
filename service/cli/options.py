"""The options of the command line: how they are read and explained, and the request fields that they set."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from service.errors import InvalidRequest

_OPTIONS = {
    "model": "MODEL",
    "schemes": "--scheme",
    "scopes": "--scope",
    "page_size": "--limit",
    "recommend.max_bytes": "--max-bytes",
    "recommend.max_kl": "--max-kl",
    "recommend": "recommend",
}
"""Options that are not named for their field."""
_GROUP = re.compile(r"(llm_int8|llm_int8_relative|massive|median_quantile|variance|heads|verdict|harm|recommend)(\.|$)")
"""Fields that `--set` sets."""
_KEY_LIMIT = re.compile(r"limits\.([a-z_]+)")
"""A limit of a key, which has an option of its own."""


def option_of(field: str) -> str:
    """Return the option that sets a field of a request: `--sequence-length` for `sequence_length`."""
    if field in _OPTIONS:
        return _OPTIONS[field]
    if _GROUP.match(field):
        return f"--set {field}"
    if of_key := _KEY_LIMIT.fullmatch(field):
        field = of_key[1]
    name = field.partition(".")[0]
    return _OPTIONS.get(name, "--" + name.replace("_", "-"))


def whole_number(option: str, least: int | None = None, most: int | None = None) -> Callable[[str], int]:
    """Return a parser for `option`: whole numbers from `least` to `most`. It raises InvalidRequest."""
    allowed = "a whole number" if least is None else f"a whole number from {least:,} to {most:,}"

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or (least is not None and most is not None and not least <= number <= most):
            raise InvalidRequest(option, text, allowed)
        return number

    parse.__name__ = "number"
    return parse


def whole_option(option: str, metavar: str, meaning: str, *, least: int | None = None, most: int | None = None) -> Any:
    """Return typer's description of an option that takes whole numbers from `least` to `most`."""
    return typer.Option(option, parser=whole_number(option, least, most), metavar=metavar, help=meaning)


def number_option(option: str, metavar: str, meaning: str) -> Any:
    """Return typer's description of an option that takes numbers."""
    return typer.Option(option, parser=number(option), metavar=metavar, help=meaning)


def number(option: str) -> Callable[[str], float]:
    """Return a parser for `option`: numbers. It raises InvalidRequest."""

    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError as error:
            raise InvalidRequest(option, text, "a number") from error

    parse.__name__ = "number"
    return parse


def check_body(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest, by the name of the option, for a job that this version's service would refuse."""
    from pydantic import ValidationError

    from service.contracts import refusals
    from service.contracts.request import JobSubmission

    try:
        JobSubmission.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        option = option_of(".".join(str(part) for part in first["loc"]))
        message = refusals.sentence(option, repr(first["input"]), first)
        raise InvalidRequest(option, first["input"], refusals.allowed(first), message=message) from error


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory for the report: new or empty.")]
OutUnlessPlan = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Directory for the report: new or empty. Not with --plan.")
]
Plan = Annotated[
    bool,
    typer.Option(
        "--plan",
        help="Only print what it would take: forward passes, disk, parts replaced alone, and the sizes of mixes. "
        "MODEL must be a directory or `sample`.",
    ),
]
Schemes = Annotated[
    list[str] | None,
    typer.Option(
        "--scheme",
        metavar="SCHEME",
        help="Quantization scheme, as [LABEL=]SCHEME[:KEY=VALUE,...]: int8, nf4:compute_dtype=float32, "
        "lossless=int8:threshold=4, nf4:keep=mlp.down. Repeatable. Default: int8 and nf4.",
    ),
]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="PATTERN",
        help="Modules that stay in 16 bits under every scheme: a component (attn.v), one of a layer "
        "(layers.11.mlp.down), or a module's full name. Repeatable.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Calibration text: UTF-8 text, or JSON Lines (.jsonl) or Parquet (.parquet) with texts or token ids. "
        "Default: the bundled text.",
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Threshold of a definition, such as llm_int8.magnitude=5, or limit of the verdict, such as "
        "verdict.kl_severe=0.2, or setting of --harm, such as harm.draws=8. Repeatable.",
    ),
]
Harm = Annotated[
    list[str] | None,
    typer.Option(
        "--harm",
        metavar="WHICH",
        help="Harm of replacing parts of the model alone: estimate (every module, from gradients), layers (every "
        "layer, measured), modules (the most harmful modules, measured) or dimensions (of the residual stream). "
        "Repeatable.",
    ),
]
Labelled = Annotated[
    Path | None, typer.Option("--labelled", metavar="FILE", help="Labeled or scored prompts, JSON Lines.")
]
Score = Annotated[
    str | None,
    typer.Option(
        "--score", metavar="WHICH", help="Scored positions: all or second_half of each sequence. Default: all."
    ),
]
MaxBytes = Annotated[
    str | None,
    typer.Option(
        "--max-bytes",
        metavar="SIZE",
        help="The model may take SIZE, such as 120MB. Default: the knee of the frontier.",
    ),
]
MaxKl = Annotated[
    float | None,
    number_option("--max-kl", "X", "The mean KL divergence may be X nats; instead of --max-bytes."),
]
SplitGroups = Annotated[
    bool,
    typer.Option(
        "--split-groups",
        help="Let q, k, v of a layer differ, and gate, up. transformers loads such a model, vLLM and SGLang do not.",
    ),
]

RetentionDays = Annotated[
    int | None,
    whole_option(
        "--retention-days",
        "N",
        "Days after its end for which the service keeps the report. Default: HEADROOM_RETENTION_DAYS of the service.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="Keep hidden states above SIZE, such as 4GiB, in files. Default: HEADROOM_MEMORY, 2GiB.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="DEVICE",
        help="Device: auto, cpu, cuda or cuda:N. Default: HEADROOM_DEVICE, auto.",
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        "--fail-on",
        metavar="LEVEL",
        help="Exit with 4 if the effect of a scheme is LEVEL or worse: noticeable or severe.",
    ),
]
Limit = Annotated[
    int,
    whole_option("--limit", "N", "Entries to print, 1 to 200.", least=1, most=200),
]
PageToken = Annotated[
    str | None, typer.Option("--page-token", help="Continue a list; the previous page prints the token.")
]
ModelFilter = Annotated[str | None, typer.Option("--model", help="List only entries of this model.")]
Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A checkpoint directory, a hub id org/name@revision, or `sample`.")
]
ModelUnlessReport = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint directory, a hub id org/name@revision, or `sample`. Not with --report.",
        show_default=False,
    ),
]
OfReport = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="ID",
        help="Recommend for the model of this report, with its texts and settings. All of it is measured again; if the "
        "model's weights have changed, the job fails.",
    ),
]
Int8Threshold = Annotated[
    float | None,
    number_option(
        "--int8-threshold",
        "X",
        "Default threshold of int8: input columns that reach X stay in 16 bits; 0: none. Default: 6.0.",
    ),
]
Sequences = Annotated[
    int | None,
    whole_option("--sequences", "N", "Calibration sequences. Default: 16."),
]
SequenceLength = Annotated[
    int | None,
    whole_option("--sequence-length", "S", "Tokens in each sequence. Default: 256."),
]
BatchSequences = Annotated[
    int | None,
    whole_option(
        "--batch-sequences",
        "B",
        "Sequences in one forward pass; fewer need less memory. Default: by the model's width.",
    ),
]
Seed = Annotated[
    int | None,
    whole_option("--seed", "K", "Seed of the choice of sequences. Default: 0."),
]
Bos = Annotated[
    str | None,
    typer.Option(
        "--bos",
        metavar="WHEN",
        help="BOS token before every sequence: auto (as the tokenizer does), always or never. Default: auto.",
    ),
]
TextField = Annotated[
    str | None,
    typer.Option("--text-field", metavar="NAME", help="Field or column with the text. Default: text."),
]
LabelThreshold = Annotated[
    float | None,
    number_option("--label-threshold", "X", "A prompt with a score above X is true."),
]
LabelDepth = Annotated[
    int | None,
    whole_option("--label-depth", "L", "Take the prompts' vectors after layer L. Default: after the final norm."),
]
LabelDimensions = Annotated[
    int | None,
    whole_option("--label-dimensions", "K", "Dimensions reported for the prompts. Default: 4."),
]
