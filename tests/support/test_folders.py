"""Folders are of one kind each, even where the module that writes a kind is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptmst.errors import InputError
from ptmst.support import files, folders
from ptmst.support.folders import Kind

CUPS = Kind("a cupboard", ("cups.json", "plates.json"), beside=("spoon list",))
BOOKS = Kind("a bookcase", ("books.json",))


@pytest.mark.parametrize("index", CUPS.index)
def test_a_folder_is_of_one_kind(tmp_path: Path, index: str) -> None:
    """By the name of its index, damaged or not."""
    (tmp_path / index).touch()
    message = f"^{tmp_path}: holds a cupboard already; choose another --out$"
    for but in (None, BOOKS):
        with pytest.raises(InputError, match=message):
            folders.refuse_taken(tmp_path, but)
    with pytest.raises(InputError, match=message), folders.claimed(tmp_path, CUPS, fresh=True):
        pass
    folders.refuse_taken(tmp_path, CUPS)
    with folders.claimed(tmp_path, CUPS):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [index]


@pytest.mark.parametrize(("form", "name"), [("demo", "a demo"), ("ablation", "an ablation"), ("tea-set", "a tea set")])
def test_a_kind_that_is_not_known_here_is_seen_by_its_format(tmp_path: Path, form: str, name: str) -> None:
    files.write_json(tmp_path / "some.json", {"format": f"ptmst-{form}", "version": 1})
    with pytest.raises(InputError, match=f"^{tmp_path}: holds {name} already; choose another --out$"):
        folders.refuse_taken(tmp_path, BOOKS)


def test_other_files_do_not_tell(tmp_path: Path) -> None:
    files.write_json(tmp_path / "spoons.json", {"format": "ptmst-spoon-list"})
    (tmp_path / "theirs.json").write_text('{"format": "another"}')
    (tmp_path / "list.json").write_bytes(b"[\xff")
    (tmp_path / "demo.txt").write_text('{"format": "ptmst-demo"}')
    (tmp_path / "folder.json").mkdir()
    folders.refuse_taken(tmp_path)
    folders.refuse_taken(tmp_path / "not there")


@pytest.mark.slow
def test_every_kind_is_refused_where_its_module_is_not_imported(tmp_path: Path) -> None:
    """Whoever teaches has never imported the studies."""
    for kind, record in (("demo", "demo.json"), ("ablation", "ablation.json")):
        files.write_json(tmp_path / kind / record, {"format": f"ptmst-{kind}", "version": 1})
    code = (
        "import sys\nfrom pathlib import Path\nfrom ptmst import TeachConfig, train_teachers\n"
        "for name in ('demo', 'ablation'):\n"
        "    try: train_teachers(TeachConfig(out=Path(sys.argv[1]) / name))\n"
        "    except Exception as error: print(str(error).removeprefix(sys.argv[1]))\n"
        "print([name for name in sys.modules if name.startswith('ptmst.studies')])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/demo: holds a demo already; choose another --out",
        "/ablation: holds an ablation already; choose another --out",
        "[]",
    ]
