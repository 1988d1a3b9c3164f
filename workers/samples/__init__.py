"""The sample checkpoint: a small Llama, trained here, with outlier dimensions that are known because they were planted.

Importing this package loads no library; it only says where the files lie.
"""

from pathlib import Path

_HERE = Path(__file__).parent

MODEL = _HERE / "model"
"""The checkpoint: config.json, model.safetensors, the tokenizer's files and the model card."""
CALIBRATION = _HERE / "calibration.txt"
"""UTF-8 text that the model was never trained on, for measuring activations."""
HELD_OUT = _HERE / "held_out.txt"
"""UTF-8 text that neither training nor calibration contains, for perplexity."""
LABELLED = _HERE / "labelled.jsonl"
"""One JSON object a line: `prompt` (text whose last token carries the truth) and `label` (true or false)."""
PLANTED = _HERE / "planted.json"
"""The planted outlier dimensions: their numbers, factors, layers and norms, and what was measured of them."""
