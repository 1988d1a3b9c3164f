"""The path of an audit in the API, from what names it on the command line."""

import re

from service.errors import InvalidRequest

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def path_of(name: str, parameter: str = "NAME") -> str:
    """Return the path of an audit. Raises InvalidRequest for what is neither a name nor an id."""
    if not _NAME.fullmatch(name):
        allowed = "the name or id of an audit: 1 to 63 of a-z, 0-9 and -, first a letter or a digit"
        raise InvalidRequest(parameter, name, allowed)
    return f"/v1/audits/{name}"
