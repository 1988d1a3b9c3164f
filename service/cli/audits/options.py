"""The keys of an audit that the options of `headroom audits create` and `edit` set."""

from typing import Any

from service.cli.audits.audit_file import FILES
from service.cli.audits.yaml_lines import read
from service.cli.commands.audit_options import AuditOptions
from service.cli.inputs import model_name
from service.cli.uploads import upload
from service.errors import InvalidRequest

_AS_TYPED = ("sequences", "sequence_length", "seed", "schedule", "timezone", "baseline", "reruns")
_LISTS = {"scheme": "schemes", "limit": "limits"}


def body(
    name: str | None, model: str | None, options: AuditOptions, *, on_this_machine: bool, largest_file: int
) -> dict[str, Any]:
    """Return the keys of an audit that were typed. Raises InvalidRequest for what no service takes."""
    sent: dict[str, Any] = {} if name is None else {"name": name}
    sent |= {key: value for key in _AS_TYPED if (value := getattr(options, key)) is not None}
    sent |= _model(model, options, on_this_machine=on_this_machine)
    sent |= {key: list(values) for option, key in _LISTS.items() if (values := getattr(options, option))}
    named = ((key, getattr(options, key)) for key in FILES)
    sent |= {key: upload(f"--{key}", path, largest_file) for key, path in named if path is not None}
    if options.webhook or options.email:
        sent["notify"] = _receivers(options)
    for text in options.others or ():
        _set(sent, text)
    return sent


def _receivers(options: AuditOptions) -> list[dict[str, str]]:
    return [{"webhook": url} for url in options.webhook or ()] + [{"email": one} for one in options.email or ()]


def _model(model: str | None, options: AuditOptions, *, on_this_machine: bool) -> dict[str, Any]:
    if model is not None and options.newest_in is not None:
        raise InvalidRequest("--newest-in", str(options.newest_in), "either MODEL or --newest-in")
    if options.newest_in is not None:
        return {"model": {"newest_in": str(options.newest_in.expanduser().absolute())}}
    if model is not None:
        return {"model": model_name(model, on_this_machine=on_this_machine)}
    return {}


def _set(sent: dict[str, Any], text: str) -> None:
    """Set the key that `KEY=VALUE` names; VALUE is read as YAML, and KEY may be dotted."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidRequest("--set", text, "KEY=VALUE, such as overlap=queue or llm_int8.magnitude=5")
    *groups, last = key.split(".")
    at: Any = sent
    for group in groups:
        if isinstance(at, dict):
            at = at.setdefault(group, {})
    if not isinstance(at, dict) or last in at:
        raise InvalidRequest("--set", text, "each key once", problem="sets a key that is set already")
    at[last] = read(value, f"--set {key}").content
