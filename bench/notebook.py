"""`python -m bench.notebook`: execute docs/tutorial.ipynb in an empty folder, and keep its output but for remarks."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


def main() -> int:
    book = nbformat.read(NOTEBOOK, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(book, resources={"metadata": {"path": folder}}).execute()
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
            for one in cell.outputs:
                if "text" in one:
                    one.text = re.sub(r"\x1b\[[\d;]*m", "", one.text)
    nbformat.write(book, NOTEBOOK)
    return 0


if __name__ == "__main__":
    sys.exit(main())
