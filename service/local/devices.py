"""Which workers a machine gets: one for every GPU, else one."""

import os
import subprocess

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ANSWER_SECONDS = 20


def worker_devices(device: str, workers: int | None) -> list[str]:
    """Return the devices of `workers` workers, by default one for every GPU where the device is `auto`, else one.

    With `auto` and several GPUs the workers take turns on them: `cuda:0`, `cuda:1`, ...
    """
    gpus = gpu_count() if device == "auto" else 0
    count = workers or max(1, gpus)
    return [f"cuda:{number % gpus}" for number in range(count)] if gpus > 1 else [device] * count


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves to this process; 0 without a driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    present = sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
    visible = os.environ.get(_VISIBLE)
    if visible is None:
        return present
    return min(present, sum(part.strip() not in ("", "-1") for part in visible.split(",")))
