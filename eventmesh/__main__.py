"""`python -m eventmesh` is `eventmesh`.

In a container, a command is often process 1, to which the kernel delivers no signal that the
process does not handle. So a SIGTERM during the imports of a worker, which take a second or two,
would be lost: the worker would go on until SIGKILL. Until a command handles the signal itself, it
ends the process here, as it does any other.
"""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run the command line."""
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end)
    from eventmesh.cli.main import main as run  # takes a while, and must come after that

    run()


def _end(number: int, _frame: object) -> None:
    os._exit(128 + number)  # as the signal ends any other process


if __name__ == "__main__":
    main()
