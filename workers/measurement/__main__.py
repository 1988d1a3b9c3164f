"""`python -m workers.measurement REQUEST.json OUT [--memory SIZE]`: measure, and leave report.json and tables/ in OUT.

With --plan in place of OUT, measure nothing and print a line of kind `plan`: what the measurement would take.
--memory, such as 512MiB, takes the place of the request's `memory_bytes`: hidden states past it are kept in files.
Standard output carries one JSON object per line (service.contracts.progress), the last `finished` or `failed`;
whatever libraries print goes to standard error. Exit status: 0 done; 2 bad input; 130 interrupted; 1 anything else.
"""

import argparse
import errno
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn, TextIO

from workers.measurement.runtime.environment import settle_environment

if __name__ == "__main__":  # before the libraries are imported
    settle_environment()
    # Losses of transformers would load the first, functions that bitsandbytes compiles the others; none is called here.
    sys.modules |= dict.fromkeys(("scipy", "torch._inductor.compile_fx", "torch._dynamo.backends.debugging"))  # type: ignore[arg-type]

import torch
import transformers
from pydantic import ByteSize, TypeAdapter, ValidationError

from service.contracts.request import MeasurementRequest, MemorySize
from workers.measurement.errors import BadRequest, MeasurementError, first_line
from workers.measurement.preparation import plan
from workers.measurement.program import measure
from workers.measurement.runtime.memory import ran_out
from workers.measurement.runtime.progress import ProgressReporter
from workers.measurement.statistics.backends import CUDA_KERNELS, replace_kernel

_WITHOUT_KERNELS = "MEASUREMENT_WITHOUT_KERNELS"
"""Set in the environment of a measurement that does without CUDA kernels: why it does."""
USAGE = "usage: python -m workers.measurement REQUEST.json OUT|--plan [--memory SIZE]"


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit status."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    reporter = ProgressReporter(out=_private_stdout())
    quiet_libraries()
    if why := os.environ.get(_WITHOUT_KERNELS):
        for kernel in CUDA_KERNELS:
            replace_kernel(kernel, why)
    try:
        options = _Arguments().parse_args(arguments)
        request = _read_request(options.request)
        if options.memory is not None:
            request = request.model_copy(update={"memory_bytes": _memory(options.memory)})
        if options.plan:
            reporter.planned(plan(request, reporter))
        else:
            measure(request, options.out, reporter)
    except MeasurementError as error:
        reporter.failed(error.code, str(error), bad_input=error.bad_input, batch_sequences=error.batch_sequences)
        return 2 if error.bad_input else 1
    except BaseException as error:  # a supervisor must always be told; a panic of a library is no Exception
        if isinstance(error, torch.AcceleratorError) and _WITHOUT_KERNELS not in os.environ:
            _restart_without_kernels(reporter, arguments, error)
        traceback.print_exc()
        reporter.failed(_code(error), f"{type(error).__name__}: {error}", bad_input=False)
        return 1
    reporter.finished()
    return 0


def _restart_without_kernels(reporter: ProgressReporter, arguments: list[str], error: BaseException) -> NoReturn:
    """Start again with plain torch in place of CUDA kernels: after such an error a process cannot use the device."""
    why = first_line(error)
    print(f"the device failed, so the measurement begins anew without CUDA kernels: {why}", file=sys.stderr, flush=True)
    os.dup2(reporter.out.fileno(), 1)
    command = [sys.executable, "-m", "workers.measurement", *arguments]
    os.execve(sys.executable, command, os.environ | {_WITHOUT_KERNELS: why})


def quiet_libraries() -> None:
    """Keep libraries from telling what a measurement does on purpose."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of every cast to fp16


class _Arguments(argparse.ArgumentParser):
    """What may be given; anything else is a bad request, told as every other one."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)
        self.add_argument("request", type=Path)
        target = self.add_mutually_exclusive_group(required=True)
        target.add_argument("out", type=Path, nargs="?")
        target.add_argument("--plan", action="store_true")
        self.add_argument("--memory")

    def error(self, message: str) -> NoReturn:
        raise BadRequest(f"{USAGE}; {message}")


def _memory(text: str) -> ByteSize:
    try:
        return TypeAdapter(MemorySize).validate_python(text)
    except ValidationError as error:
        raise BadRequest(f"--memory: {text!r} is not allowed; {error.errors()[0]['msg']}") from error


def _read_request(path: Path) -> MeasurementRequest:
    try:
        return MeasurementRequest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadRequest(f"REQUEST: {str(path)!r} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        details = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['input']!r:.200} is not allowed; {e['msg']}"
            for e in error.errors()
            if e["type"] != "default_factory_not_called"  # only says that another error is listed
        )
        raise BadRequest(f"REQUEST: {str(path)!r}: {details}") from error


def _private_stdout() -> TextIO:
    """Keep standard output for progress lines; what libraries print to it goes to standard error."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return lines


def _code(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk-full"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return "file-size-limit"
    return "out-of-memory" if ran_out(error) else "internal"


def _interrupted(_signal: int, _frame: object) -> NoReturn:
    """End at once, as if killed: an exception could be lost where libraries call back."""
    os.write(2, b"interrupted; the same command goes on from the last checkpoint\n")
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _interrupted)
    sys.exit(main(sys.argv[1:]))
