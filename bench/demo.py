"""`python -m bench.demo --out FOLDER`: run the demos, and renew all that README and docs show of them.

It runs `ptmst demo`, whole and `--quick`, on emoji and on scenes, and on digits, one after the other in FOLDER, where
each continues if it was stopped, or is as it was if it was finished. Then it writes their results to bench/results, the
page docs/demo/report.html, the picture docs/strip.png and every table. `--only NAME` runs one of them, and renews what
is its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench import readme, result, strip
from ptmst.studies.demo import METHODS

DEMOS = {
    "demo-emoji": ("runs/demo", []),
    "demo-emoji-quick": ("runs/demo-quick", ["--quick"]),
    "demo-scenes": ("runs/demo-scenes", ["--data", "scenes"]),
    "demo-scenes-quick": ("runs/demo-scenes-quick", ["--data", "scenes", "--quick"]),
    "demo-digits": ("runs/demo-digits", ["--data", "digits"]),
}
"""Folder and flags of each demo, by the name of its results."""
SHOWN = "demo-emoji"
"""The demo whose page is shown, and in a picture the set that README's headline tells of."""
PAGE, PICTURE = result.ROOT / "docs" / "demo" / "report.html", result.ROOT / "docs" / "strip.png"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the demos run")
    parser.add_argument("--only", choices=DEMOS, help="the name of its results")
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    wanted = [options.only] if options.only else list(DEMOS)
    for name in wanted:
        folder, flags = DEMOS[name]
        # The default folder of `ptmst demo`, so that the recorded command is what a user runs.
        where = [] if folder == "runs/demo" else ["--out", folder]
        # What a first run takes: nothing is in the cache.
        environment = os.environ | {"PTMST_CACHE": f"cache-{name}"}
        subprocess.run([sys.executable, "-m", "ptmst", "demo", *flags, *where], cwd=out, env=environment, check=True)
        shutil.copyfile(out / folder / "results.json", result.RESULTS / f"{name}.json")
    if SHOWN in wanted:
        shown = out / DEMOS[SHOWN][0]
        shutil.copyfile(shown / "report.html", PAGE)
        strip.draw(strip.rows(shown / _folder_of(readme.best(SHOWN)), shown / "data"), PICTURE)
    readme.write()
    return 0


def _folder_of(label: str) -> str:
    """The folder of a method, by the name that tables show."""
    (method,) = (method for method, shown in METHODS.items() if shown == label)
    return method


if __name__ == "__main__":
    sys.exit(main())
