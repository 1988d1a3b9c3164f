"""`python -m service.local`: run the stack that commands share, until no command uses it.

One line of JSON on standard output says where it listens, or why it cannot start.
"""

import contextlib
import json
import signal
import sys
import time

from service.errors import HeadroomError
from service.local.stack import Stack
from service.settings import settings

CHECK_SECONDS = 0.3
"""Pause between two looks at the children and at who uses the stack."""


def main() -> None:
    """Run until SIGTERM, or until no command uses the stack. Exits with 3 when a part of it ends by itself."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    said = False
    try:
        present = settings()
        with Stack(present, purpose="shared", devices=[present.device], host="127.0.0.1", port=0) as stack:
            _say({"url": stack.url})
            said = True
            while not stack.home.is_unused():
                stack.check()
                time.sleep(CHECK_SECONDS)
    except HeadroomError as error:
        print(error, file=sys.stderr, flush=True)
        if not said:
            _say({"message": str(error), "code": error.code, "status": error.status})
        sys.exit(3)
    except KeyboardInterrupt:
        pass


def _say(document: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):  # the command that waited for it is gone
        print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
