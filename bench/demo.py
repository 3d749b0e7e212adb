"""`python -m bench.demo --out FOLDER`: run the demos, and renew all that README and docs show of them.

It runs `ptmst demo`, whole and `--quick`, on emoji and on scenes, and on digits, one after the other in FOLDER, where
each continues if it was stopped, or is as it was if it was finished. Then it writes their results to bench/results, the page
docs/demo/report.html, the picture docs/strip.png and every table.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from bench import readme, result, strip

DEMOS = {
    "demo-emoji": ("runs/demo", []),
    "demo-emoji-quick": ("runs/demo-quick", ["--quick"]),
    "demo-scenes": ("runs/demo-scenes", ["--data", "scenes"]),
    "demo-scenes-quick": ("runs/demo-scenes-quick", ["--data", "scenes", "--quick"]),
    "demo-digits": ("runs/demo-digits", ["--data", "digits"]),
}
"""Folder and flags of each demo, by the name of its results."""
SHOWN = "demo-emoji"
PAGE, PICTURE = result.ROOT / "docs" / "demo" / "report.html", result.ROOT / "docs" / "strip.png"


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the demos run")
    out = options.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for folder, flags in DEMOS.values():
        # The default folder of `ptmst demo`, so that the recorded command is what a user runs.
        where = [] if folder == "runs/demo" else ["--out", folder]
        subprocess.run([sys.executable, "-m", "ptmst", "demo", *flags, *where], cwd=out, check=True)
    for name, (folder, _) in DEMOS.items():
        shutil.copyfile(out / folder / "results.json", result.RESULTS / f"{name}.json")
    shown = out / DEMOS[SHOWN][0]
    shutil.copyfile(shown / "report.html", PAGE)
    strip.draw(strip.rows(shown / "ptm-st", shown / "data"), PICTURE)
    readme.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
