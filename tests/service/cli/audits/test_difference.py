"""What applying a file would change: key by key, and as people read it."""

import pytest

from service.cli.audits.difference import Change, Difference, differences, written
from service.contracts.audits.audit import AuditDefinition


def definition(name="a", model="sample", **keys):
    return AuditDefinition(name=name, model=model, **keys).model_dump(mode="json")


def stored(name, digit):
    return {"name": name, "sha256": digit * 64, "size": 3}


def test_a_new_audit_is_shown_with_what_is_not_the_default():
    wanted = {"a": definition(sequences=32, reruns=1, limits=["block.abs_max <= 4"], llm_int8={"magnitude": 5})}
    [one] = differences({}, wanted, prune=False)
    assert one == Difference(
        "a",
        "create",
        (
            Change("sequences", 16, 32),
            Change("llm_int8.magnitude", 6.0, 5.0),
            Change("model", None, "sample"),
            Change("limits", [], ["block.abs_max <= 4"]),
        ),
    )
    assert list(written([one])) == [
        "+ a will be created",
        "    sequences: 32",
        "    llm_int8.magnitude: 5.0",
        "    model: sample",
        "    limits:",
        "      + block.abs_max <= 4",
    ]


def test_a_changed_audit_is_shown_key_by_key():
    before = definition(
        calibration=stored("c.txt", "1"), schedule="0 3 * * *", limits=["block.abs_max <= 4", "block.abs_max <= 5"]
    )
    after = definition(
        model={"newest_in": "/models"},
        calibration=stored("c.txt", "2"),
        verdict={"kl_severe": 0.2},
        skip_unchanged=False,
        limits=["block.abs_max <= 5", "block.abs_max <= 6"],
    )
    [one] = differences({"a": before}, {"a": after}, prune=False)
    assert one.action == "change"
    assert list(written([one])) == [
        "~ a will be changed",
        "    verdict.kl_severe: 0.1 -> 0.2",
        "    model: sample -> newest_in: /models",
        "    schedule: 0 3 * * * -> none",
        "    skip_unchanged: true -> false",
        "    limits:",
        "      - block.abs_max <= 4",
        "      + block.abs_max <= 6",
        "    calibration: c.txt (111111111111) -> c.txt (222222222222)",
    ]


def test_another_order_of_limits_is_a_change():
    before, after = (definition(limits=[f"block.abs_max <= {n}" for n in order]) for order in ((1, 2), (2, 1)))
    [one] = differences({"a": before}, {"a": after}, prune=False)
    assert list(written([one])) == ["~ a will be changed", "    limits:", "      in another order"]


@pytest.mark.parametrize(("prune", "action"), [(False, "leave"), (True, "remove")])
def test_an_audit_that_the_file_lacks_goes_only_if_asked(prune, action):
    present = {name: definition(name) for name in ("z", "a", "b")}
    listed = differences(present, {"b": definition("b"), "n": definition("n")}, prune=prune)
    assert [(one.name, one.action) for one in listed] == [("b", "keep"), ("n", "create"), ("a", action), ("z", action)]
    words = {"leave": "! z is not in the file; --prune removes it", "remove": "- z will be removed"}
    assert next(iter(written(listed))) == "= b is unchanged"
    assert list(written(listed))[-1] == words[action]
