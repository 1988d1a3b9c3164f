"""Held-out sequences are others of the same text, and a text too short for them is refused."""

from pathlib import Path

import pytest
from tiny_models import VOCABULARY, request_for

from workers.measurement.errors import BadCalibration
from workers.measurement.inputs.calibration import Calibration, calibrate
from workers.measurement.inputs.tokenizer import load_tokenizer

RECOMMEND = {"enabled": True}


@pytest.fixture
def calibrated(checkpoints: dict[str, Path], calibration_text: Path):
    def calibrated(text: Path = calibration_text, **settings: object) -> Calibration:
        path = checkpoints["llama"]
        return calibrate(request_for(path, text, **settings), load_tokenizer(path), VOCABULARY)

    return calibrated


def test_held_out_sequences_are_others_and_change_no_other(calibrated) -> None:
    plain, both = calibrated(sequences=6), calibrated(sequences=6, recommend=RECOMMEND)
    assert plain.held_out is None
    assert both.fingerprint == plain.fingerprint
    assert both.held_out.shape == plain.token_ids.shape
    own, others = ({tuple(row) for row in ids.tolist()} for ids in (both.token_ids, both.held_out))
    assert len(own) == len(others) == 6
    assert not own & others
    assert {row[0] for row in others} == {row[0] for row in own}  # the BOS token


@pytest.mark.parametrize("sequences", [2, 3])
def test_a_text_without_as_many_others_is_refused(sequences: int, calibrated, tmp_path: Path) -> None:
    text = tmp_path / "ids.jsonl"
    text.write_text('{"token_ids": [' + ", ".join(["5"] * (2 * 48 * sequences - 1)) + "]}")
    assert calibrated(text, sequences=sequences).held_out is None
    needed = f"at least {2 * 48 * sequences} are needed for sequence_length=48"
    with pytest.raises(BadCalibration, match=f"and {sequences} held-out ones that recommend needs; {needed}"):
        calibrated(text, sequences=sequences, recommend=RECOMMEND)
    text.write_text('{"token_ids": [' + ", ".join(["5"] * (2 * 48 * sequences)) + "]}")
    assert calibrated(text, sequences=sequences, recommend=RECOMMEND).held_out is not None
