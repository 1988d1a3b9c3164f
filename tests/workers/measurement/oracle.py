"""The definitions written a second time, plainly, in float64 over whole tensors, for the tests to compare with.

Nothing here is shared with the code under test: the model runs whole, hooks keep every tensor, and numpy sorts
what the measurement bins.

    x [N, S, d] with N sequences, S tokens each, d channels
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig


def stored_dtype(path: Path) -> torch.dtype:
    """The type that a checkpoint is stored in, as its config.json says."""
    return getattr(torch, json.loads((path / "config.json").read_text(encoding="utf-8"))["dtype"])


def configuration(path: Path, scheme: str | None, **settings: Any) -> BitsAndBytesConfig | None:
    """What `from_pretrained` must be told to load a checkpoint as a scheme has it; None for the model as it came."""
    if scheme == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, **settings)
    if scheme in ("nf4", "fp4"):
        computing = {"bnb_4bit_compute_dtype": stored_dtype(path)} | settings
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=scheme, **computing)
    return None


class WholeModel:
    """A model loaded whole, with the input and output of every Linear-like module kept from one forward pass."""

    def __init__(
        self,
        path: Path,
        token_ids: torch.Tensor,
        scheme: str | None = None,
        quantization: BitsAndBytesConfig | None = None,
    ) -> None:
        """Load and run it where the tokens are; quantization: in place of the scheme's usual configuration."""
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            quantization_config=quantization or configuration(path, scheme),
            device_map=None if token_ids.device.type == "cpu" else {"": token_ids.device},
        ).eval()
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}
        hooks = [m.register_forward_hook(self._keep(name)) for name, m in self.model.named_modules() if name]
        with torch.no_grad():
            self.logits = self.model(input_ids=token_ids, use_cache=False).logits
        for hook in hooks:
            hook.remove()

    def site(self, architecture: str, layer: int, component: str, port: str) -> np.ndarray:
        """Return the tensor at a site, [N, S, d]."""
        if component == "block":
            return self.outputs[block(architecture, layer)].float().cpu().numpy()
        module, part = components(architecture, layer, self.model.config)[component]
        return (self.inputs[module] if port == "input" else part(self.outputs[module])).float().cpu().numpy()

    def _keep(self, name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if inputs and isinstance(inputs[0], torch.Tensor):
                self.inputs[name] = inputs[0].clone()
            # A copy, for some layers write into what their modules gave.
            first = output[0] if isinstance(output, tuple) else output
            self.outputs[name] = first.clone() if isinstance(first, torch.Tensor) else first

        return hook


def site_figures(x: np.ndarray) -> dict[str, float]:
    """Every column of the `sites` table for x [N, S, d], from sorted float64 values; x must be finite."""
    x = x.astype(np.float64)
    magnitudes = np.sort(np.abs(x), axis=None)
    mean, std = x.mean(), x.std()
    rms = np.sqrt((x**2).mean())
    median = np.quantile(magnitudes, 0.5)

    def per_sequence(s: np.ndarray) -> float:
        flat = s.reshape(-1)
        unbiased = flat.std(ddof=1)
        return ((flat - flat.mean()) ** 4).sum() / flat.size / (unbiased**4 + 1e-6)

    return {
        "tokens": x.shape[0] * x.shape[1],
        "channels": x.shape[2],
        "min": x.min(),
        "max": x.max(),
        "abs_max": magnitudes[-1],
        "mean": mean,
        "std": std,
        "rms": rms,
        "median_abs": median,
        "p99_abs": np.quantile(magnitudes, 0.99),
        "p99_9_abs": np.quantile(magnitudes, 0.999),
        "p99_99_abs": np.quantile(magnitudes, 0.9999),
        "crest_db": 20 * np.log10(magnitudes[-1] / rms),
        "max_to_median": magnitudes[-1] / median,
        "range_bits": np.log2(magnitudes[-1] / median),
        "kurtosis": ((x - mean) ** 4).mean() / std**4,
        "kurtosis_per_sequence": np.mean([per_sequence(s) for s in x]),
        "inf_norm_per_sequence": np.mean([np.abs(s).max() for s in x]),
        "token_abs_max_p50": np.quantile(np.abs(x).max(axis=-1), 0.5),
        "token_abs_max_p99": np.quantile(np.abs(x).max(axis=-1), 0.99),
        "over_fp16": int((np.abs(x) > 65504).sum()),
        "nonfinite": 0,
    }


def error_figures(y: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """Every figure of `Error of a scheme` but weight_error, for y and q [..., d]."""
    y = y.astype(np.float64).reshape(-1, y.shape[-1])
    q = q.astype(np.float64).reshape(-1, q.shape[-1])
    noise, signal = ((y - q) ** 2).sum(), (y**2).sum()
    norm = np.linalg.norm
    return {
        "sqnr_db": 10 * np.log10(signal / noise) if noise else np.nan,
        "relative_l2": np.sqrt(noise / signal),
        "median_token_error": np.median(norm(y - q, axis=1) / norm(y, axis=1)),
        "cosine": np.mean((y * q).sum(axis=1) / (norm(y, axis=1) * norm(q, axis=1))),
        "max_abs_error": np.abs(y - q).max(),
    }


def components(architecture: str, layer: int, config: Any) -> dict[str, tuple[str, Any]]:
    """Component -> (module name in the whole model, function from the module's output to the component's)."""

    def whole(x: Any) -> Any:
        return x

    if architecture == "llama":
        names = {"attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj"}
        names |= {"attn.o": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj"}
        names |= {"mlp.down": "mlp.down_proj"}
        return {c: (f"model.layers.{layer}.{n}", whole) for c, n in names.items()}
    if architecture == "gpt2":
        prefix = f"transformer.h.{layer}"
        fused = {
            f"attn.{c}": (f"{prefix}.attn.c_attn", lambda x, i=i: x.reshape(*x.shape[:-1], 3, -1)[..., i, :])
            for i, c in enumerate("qkv")
        }
        names = {"attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
        return fused | {c: (f"{prefix}.{n}", whole) for c, n in names.items()}
    prefix, heads = f"gpt_neox.layers.{layer}", config.num_attention_heads
    fused = {
        f"attn.{c}": (
            f"{prefix}.attention.query_key_value",
            lambda x, i=i: x.reshape(*x.shape[:-1], heads, 3, -1)[..., i, :].reshape(*x.shape[:-1], -1),
        )
        for i, c in enumerate("qkv")
    }
    names = {"attn.o": "attention.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h"}
    return fused | {c: (f"{prefix}.{n}", whole) for c, n in names.items()}


def block(architecture: str, layer: int) -> str:
    """Name of a decoder layer in the whole model."""
    return {"llama": "model.layers", "gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers"}[architecture] + f".{layer}"


def massive(x: np.ndarray, magnitude: float, ratio: float) -> dict[tuple[int, int, int], tuple[float, float]]:
    """(sequence, position, dimension) -> (ratio to the sequence's median, ratio to the token's) of x [N, S, d]."""
    found = {}
    for n, s, j in np.argwhere(np.abs(x) > magnitude).tolist():
        value = abs(float(x[n, s, j]))
        ratios = value / np.median(np.abs(x[n])), value / np.median(np.abs(x[n, s]))
        if max(ratios) >= ratio:
            found[n, s, j] = ratios
    return found


def layerwise(x: np.ndarray) -> dict[str, list[int]]:
    """Dimensions of x [N, S, d] that the definitions of one layer flag."""
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    variance = flat.var(axis=0)
    return {
        "median_quantile": np.flatnonzero(np.median(np.abs(flat), axis=0) > np.quantile(np.abs(flat), 0.99)).tolist(),
        "variance": np.flatnonzero(variance >= 5 * variance.mean()).tolist(),
    }


def head_figures(z: np.ndarray, heads: int) -> list[dict[str, float]]:
    """The figures of every head of z [N, S, H * D]."""
    z = z.astype(np.float64)
    whole = np.sqrt((z**2).mean())
    slices = np.split(z, heads, axis=-1)
    return [
        {
            "abs_max": np.abs(part).max(),
            "rms": np.sqrt((part**2).mean()),
            "crest_db": 20 * np.log10(np.abs(part).max() / np.sqrt((part**2).mean())),
            "relative_peak": np.abs(part).max() / whole,
        }
        for part in slices
    ]
