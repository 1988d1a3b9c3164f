"""The shipped checkpoint, loaded once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from workers.samples import CALIBRATION, HELD_OUT, MODEL, PLANTED
from workers.samples.packing import evaluation_sequences


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    loaded = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    assert isinstance(loaded, LlamaForCausalLM)
    return loaded


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(MODEL)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="session")
def calibration(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Token ids [N, 256]."""
    return evaluation_sequences(tokenizer, CALIBRATION.read_text(encoding="utf-8"), 256)


@pytest.fixture(scope="session")
def held_out(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """Token ids [N, 256]."""
    return evaluation_sequences(tokenizer, HELD_OUT.read_text(encoding="utf-8"), 256)


@pytest.fixture(scope="session")
def planted() -> dict[str, Any]:
    return json.loads(PLANTED.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small products are no faster on several threads, and far slower where other programs use the processor too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
