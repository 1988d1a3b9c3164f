"""Draws the record of a history, and writes its figures; all of them or nothing."""

import shutil
from pathlib import Path
from typing import ClassVar

from service.contracts.audits.history import AuditHistory
from service.errors import HeadroomError
from workers.reporting.drawing import style
from workers.reporting.history.figures import draw
from workers.reporting.publish import check_out, new_directory

RECORD, TABLE = "history.json", "history.csv"


class HistoryUnreadable(HeadroomError):
    """The source is not the history of an audit."""

    code: ClassVar[str] = "history-unreadable"
    status: ClassVar[int] = 422


def draw_history(out: Path, source: Path) -> None:
    """Draw the history in `source`, and make `out` of it: history.json, history.csv and figures/.

    `out` is built beside its place and renamed: it appears whole or not at all.

    Raises:
        OutTaken: `out` is there already, and is not an empty directory.
        HistoryUnreadable: history.json or history.csv is missing or damaged.
        OSError: a file could not be written.
    """
    check_out(out)
    history = _read(source)
    with new_directory(out) as made:
        (made / "figures").mkdir()
        for name in (RECORD, TABLE):
            shutil.copyfile(source / name, made / name)
        with style.applied():
            for drawing in draw(history):
                drawing.save(made / "figures")


def _read(source: Path) -> AuditHistory:
    for name in (RECORD, TABLE):
        if not (source / name).is_file():
            raise HistoryUnreadable(f"{source}: has no {name}")
    try:
        return AuditHistory.model_validate_json((source / RECORD).read_bytes())
    except ValueError as error:
        raise HistoryUnreadable(f"{source}: {RECORD} is not the history of an audit") from error
