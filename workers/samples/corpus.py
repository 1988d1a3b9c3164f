"""Collects the training text: sources and documentation strings of Python's standard library.

A module is the unit of the split. Its name alone decides whether it is for training, calibration or the held-out
text, so the split does not change when a module is added. Modules still share text (licenses, copied helpers), so
a long paragraph of the calibration and held-out modules that the training text also has is taken out of them.
"""

import ast
import hashlib
import sysconfig
import tokenize
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SKIPPED = frozenset(
    {"__phello__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "test", "tests"}
)
"""Directories left out: tests, tables, programs and what is not the library's own."""
SHARED_PARAGRAPH = 100
"""Characters from which a paragraph counts as text that the model could have memorized."""
EXCERPT = 6000
"""Characters taken at most from one module into the calibration or held-out text, so that many modules have a part."""


class Part(StrEnum):
    """What a module's text is for."""

    training = "training"
    calibration = "calibration"
    held_out = "held_out"


@dataclass(frozen=True)
class Module:
    """One module of the standard library, or one topic of its language reference."""

    name: str
    """Path inside the library, with forward slashes."""
    documentation: str
    """Its documentation strings, one paragraph each."""
    source: str
    """The whole file; empty for a topic."""


def part_of(name: str) -> Part:
    """The part a module belongs to: 1 in 16 is for calibration, 1 in 16 is held out, the others are for training."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 16
    return {0: Part.calibration, 1: Part.held_out}.get(bucket, Part.training)


def library_modules() -> Iterator[Module]:
    """Every module of the running Python's standard library in the order of their names, then the help topics."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        # _sysconfigdata holds the paths of the machine that built Python, not text.
        if SKIPPED.isdisjoint(name.parts) and not name.name.startswith("_sysconfigdata"):
            with tokenize.open(path) as file:
                source = file.read()
            yield Module(name.as_posix(), documentation(source), source)
    from pydoc_data.topics import topics

    for topic in sorted(topics):
        yield Module(f"topics/{topic}", topics[topic], "")


def documentation(source: str) -> str:
    """The documentation strings of a module, its classes and functions, dedented, in the order of the file."""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, holders))
    texts = sorted((getattr(node, "lineno", 0), ast.get_docstring(node)) for node in nodes if ast.get_docstring(node))
    return "\n\n".join(text for _, text in texts if text)


def training_documents(modules: Sequence[Module]) -> list[str]:
    """The documentation and the source of every training module, as separate documents."""
    chosen = [module for module in modules if part_of(module.name) is Part.training]
    return [text for module in chosen for text in (module.documentation, module.source) if text.strip()]


def unseen_text(modules: Sequence[Module], part: Part, limit: int) -> str:
    """Text of one part, without the paragraphs it shares with the training text; at most `limit` characters.

    Modules give their documentation and their source in turn, never both: the one repeats the other.
    """
    seen = {paragraph for text in training_documents(modules) for paragraph in paragraphs(text)}
    pieces: list[str] = []
    chosen = [module for module in modules if part_of(module.name) is part]
    for index, module in enumerate(chosen):
        text = _either(module, source_first=index % 2 == 0)
        pieces.append(whole_lines(_without(text, seen), EXCERPT))
    return whole_lines("\n\n".join(piece for piece in pieces if piece.strip()), limit)


def _without(text: str, shared: Collection[str]) -> str:
    """The text without those of its long paragraphs that are among `shared`."""
    return "\n\n".join(p for p in paragraphs(text) if len(p) < SHARED_PARAGRAPH or p not in shared)


def _either(module: Module, *, source_first: bool) -> str:
    """The module's source or its documentation; the other where the one asked for is empty."""
    return module.source or module.documentation if source_first else module.documentation or module.source


def paragraphs(text: str) -> list[str]:
    """The text cut at blank lines."""
    return [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]


def whole_lines(text: str, limit: int) -> str:
    """The longest beginning of whole lines that has at most `limit` characters."""
    return text if len(text) <= limit else text[: text.rfind("\n", 0, limit) + 1]
