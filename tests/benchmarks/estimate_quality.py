"""How well estimates of harm agree with measured harms of a real model, by the number of draws.

    python tests/benchmarks/estimate_quality.py MODEL [--dtype float32] [--sequences 16] [--length 256] [--draws 16]
        [--modules 210]

MODEL is the checkpoint of `bash deploy/real_model.sh`. Modules are those of the largest estimates under nf4. Of S = 1,
2, 4, ... draws for each sequence: Spearman's rank correlation with the measured harms less the noise floor, and the sum
of the estimates over that of these. Every first S draws are among the next, so one reverse sweep gives all of them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import program_environment  # noqa: F401  (before torch)
import torch
from nf4_harm import copied, nf4_harm

from service.contracts.request import MeasurementRequest
from workers.measurement.__main__ import quiet_libraries
from workers.measurement.harm.estimates.agreement import less_floor, spearman
from workers.measurement.harm.estimates.estimate import estimated_harm
from workers.measurement.inputs.calibration import calibrate
from workers.measurement.inputs.tokenizer import load_tokenizer
from workers.measurement.models.checkpoint import open_checkpoint
from workers.measurement.models.loading import load_decoder
from workers.samples import CALIBRATION


def main() -> None:
    """Print a line for each number of draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="float32")
    for name, default in (("sequences", 16), ("length", 256), ("draws", 16), ("modules", 210)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as made:
        compare(options, Path(made))


def compare(options: argparse.Namespace, scratch: Path) -> None:
    """Measure and estimate the harm of the modules."""
    path = copied(options.model, options.dtype, scratch / "model")
    decoder = load_decoder(open_checkpoint(path), torch.device("cpu"), scratch / "offloaded")
    request = MeasurementRequest.model_validate(
        {
            "model": {"path": path},
            "calibration": {"path": CALIBRATION},
            "sequences": options.sequences,
            "sequence_length": options.length,
            "schemes": ["nf4"],
            "harm": {"exact": "modules", "top_modules": options.modules, "random_modules": 0, "draws": options.draws},
        }
    )
    text = calibrate(request, load_tokenizer(path), decoder.config.vocab_size)
    results = nf4_harm(request, decoder, text.token_ids, scratch)
    harm, floor = results.schemes["nf4"], results.noise_floor
    assert harm.products is not None
    assert floor is not None
    chosen = [module for module in harm.products.modules if harm.modules.get(module) is not None]
    measured = np.array([value.value for module in chosen if (value := harm.modules[module]) is not None])
    net = less_floor(measured, np.array([floor[module.layer] for module in chosen]))
    products = harm.products.matrix()[:, :, [harm.products.modules.index(module) for module in chosen]]
    print(f"{len(chosen)} modules; sum of measured harms {measured.sum():.4f} nats, less the floor {net.sum():.4f}")
    draws = 1
    while draws <= options.draws:
        estimates = np.array([one.value for one in estimated_harm(products[:, :draws], options.length - 1)])
        rank, share = spearman(net, estimates), estimates.sum() / net.sum()
        print(f"S = {draws:2}: Spearman {rank:.3f}, sum of estimates / sum of measured {share:.3f}", flush=True)
        draws *= 2


if __name__ == "__main__":
    main()
