"""A TOML file as editors and systems write it, and paths as a shell reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptmst.cli import main, parse
from ptmst.config import Experiment
from ptmst.errors import InputError
from ptmst.schema import from_toml

TEXT = '[teach]\nout = "~/store"\nepochs = 7\n[teach.data]\nroot = "~/data"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    "content", [TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode("utf-8-sig")]
)
def test_a_file_with_a_mark_at_its_start_and_a_tilde_in_its_paths(content: bytes, tmp_path: Path, home: Path) -> None:
    (tmp_path / "ours.toml").write_bytes(content)
    found = from_toml(Experiment, tmp_path / "ours.toml").teach
    assert (found.epochs, found.out, found.data.root) == (7, home / "store", home / "data")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("utf-16"), "expected TOML in UTF-8, found another encoding; save it as UTF-8"),
        (b'[teach]\nout = "caf\xe9"', "expected TOML in UTF-8, found another encoding; save it as UTF-8"),
        (b"a = " + b"[" * 200_000, "expected TOML, found brackets too deep to read; fix them"),
        (b"[teach]\nepochs = " + b"1" * 5000, "expected TOML, found a mistake (Exceeds the limit"),
        (b'[teach]\nout = "a\\u0000b"', r"expected a path, found one with a NUL in it, 'a\x00b' @ $.teach.out"),
        (b'[teach]\nout = "~nobody-at-all/x"', "expected a path, found ~nobody-at-all/x, whose user has no home fold"),
    ],
)
def test_what_is_no_such_file_is_told_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "ours.toml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        from_toml(Experiment, tmp_path / "ours.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'ours.toml'}: {message}") and "\n" not in str(caught.value)


def test_a_tilde_on_the_command_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Behind = a shell leaves it as it is."""
    command: Any = parse(["distill", "--store=~/store", "--out=~/set", "--root=~"])
    assert (command.store, command.settings.out, command.settings.root) == (home / "store", home / "set", home)
    report: Any = parse(["report", "~/a", "b"])
    assert report.sets == (home / "a", Path("b"))
    assert main(["report", "s", "--out=~nobody-at-all/x"]) == 2
    assert "--out: expected a path, found ~nobody-at-all/x, whose user has no home" in capsys.readouterr().err
