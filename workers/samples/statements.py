"""Generates true and false statements: sums, the order of numbers, membership of a list.

    7 + 5 = 12 is true.        41 < 17 is false.        3 in [8, 3, 11] is true.

The prompt ends with "is", so the hidden state of its last token must carry the truth for the next word to be right.
Sums and orders are held out by their pair of numbers and memberships by the whole prompt: a labeled prompt asks
about a pair that no training statement has in any form, true or false.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

LARGEST_TERM = 12
LARGEST_ORDERED = 49
LARGEST_MEMBER = 19
HELD_OUT_SHARE = 4
"""One subject in this many is held out of the training statements."""
DRAWS = 10_000
"""Random draws among which labeled statements are looked for."""


@dataclass(frozen=True)
class Statement:
    """A claim and whether it holds."""

    prompt: str
    """The claim up to and with "is"."""
    label: bool
    """Whether the claim holds."""
    kind: str
    """A key of `KINDS`."""
    subject: str
    """What decides whether it is held out."""

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {'true' if self.label else 'false'}."

    @property
    def held_out(self) -> bool:
        """Whether training never sees this statement's subject."""
        return hashlib.sha256(self.subject.encode()).digest()[0] % HELD_OUT_SHARE == 0


def random_sum(rng: random.Random, label: bool) -> Statement:
    """A sum of two terms; a false one names any other sum that two terms can have."""
    a, b = rng.randint(0, LARGEST_TERM), rng.randint(0, LARGEST_TERM)
    wrong = [c for c in range(2 * LARGEST_TERM + 1) if c != a + b]
    return Statement(f"{a} + {b} = {a + b if label else rng.choice(wrong)} is", label, "sum", f"{a} + {b}")


def random_order(rng: random.Random, label: bool) -> Statement:
    """Whether the first of two different numbers is the smaller one."""
    small, large = sorted(rng.sample(range(LARGEST_ORDERED + 1), 2))
    a, b = (small, large) if label else (large, small)
    return Statement(f"{a} < {b} is", label, "order", f"{small} and {large}")


def random_membership(rng: random.Random, label: bool) -> Statement:
    """Whether a number stands in a list of two to four different numbers."""
    *members, stranger = rng.sample(range(LARGEST_MEMBER + 1), rng.randint(3, 5))
    asked = rng.choice(members) if label else stranger
    prompt = f"{asked} in [{', '.join(map(str, members))}] is"
    return Statement(prompt, label, "membership", prompt)


KINDS = {"sum": random_sum, "order": random_order, "membership": random_membership}


def training_statements(seed: int) -> Iterator[Statement]:
    """Statements for training without end: kinds and labels equally often, held-out subjects left out."""
    rng = random.Random(seed)
    kinds = list(KINDS.values())
    while True:
        statement = rng.choice(kinds)(rng, rng.random() < 0.5)
        if not statement.held_out:
            yield statement


def labelled_statements(seed: int, per_kind: int) -> list[Statement]:
    """Different held-out statements, `per_kind` of each kind, half of them true.

    Raises:
        ValueError: `per_kind` is odd, or more than there are.
    """
    if per_kind % 2:
        raise ValueError(f"per_kind: {per_kind} is odd; allowed are even numbers, for half of them are true")
    rng = random.Random(seed)
    chosen: list[Statement] = []
    for kind, draw in KINDS.items():
        for label in (True, False):
            drawn = (draw(rng, label) for _ in range(DRAWS))
            different = list({statement.prompt: statement for statement in drawn if statement.held_out}.values())
            if len(different) < per_kind // 2:
                raise ValueError(f"per_kind: {per_kind} is too many; allowed are {2 * len(different)} for {kind}")
            chosen += different[: per_kind // 2]
    return chosen
