"""Pictures of the shop's pages for the documentation.

`python -m tests.support.shop_pictures docs/images` runs the demo and looks at its dashboard.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.browsers import DESKTOP, Window, chromium


def main(folder: Path) -> None:
    demo = [sys.executable, "-m", "eventmesh", "demo", "--purchases", "400", "--dashboard"]
    with subprocess.Popen(demo, stdout=subprocess.PIPE, text=True) as running:  # noqa: S603
        try:
            assert running.stdout is not None
            for line in running.stdout:
                if found := re.search(r"http://\S+", line):
                    with chromium(found[0]) as window:
                        look(window, folder)
                    return
        finally:
            running.kill()


def look(window: Window, folder: Path) -> None:
    window.size(DESKTOP)
    window.open("/")
    window.sees("Subscriptions")
    window.run("window.began = Date.now()")
    while window.run("return Date.now() - window.began") < 26_000:  # sparklines need a while
        window.sees("Subscriptions")
    window.take_picture(folder / "dashboard.png")
    window.open("/topology")
    window.sees("Services")
    window.take_picture(folder / "dashboard-topology.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
