"""What is typed wrongly is told in one line of ours: the flag, what was expected, what was found, what to do."""

from __future__ import annotations

from typing import Any

import pytest

from ptmst.cli import main, parse
from ptmst.config import Phase

PHASE = "expected PAIRS:ENDPOINT:FIRST-LAST, such as 200:5:0-2, auto:PAIRS or search:PAIRS, found"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # A value that is missing.
        ("teach --preset --out x", "--preset: expected a value, found none; name it behind the flag"),
        ("teach --preset", "--preset: expected a value, found none; name it behind the flag"),
        ("teach --preset=", "--preset: expected a value, found none; name it behind the flag"),
        ("teach --config --preset demo", "--config: expected a value, found none; name it behind the flag"),
        ("teach --epochs", "--epochs: expected a value, INT, found none; name it behind the flag"),
        ("teach --epochs --quiet", "--epochs: expected a value, INT, found none; name it behind the flag"),
        ("teach --data.name", "--data.name: expected a value, STR, found none; name it behind the flag"),
        ("ablate --methods", "--methods: expected a value, STR,…, found none; name it behind the flag"),
        ("subset s", "--out: expected a value, PATH, found none; name it"),
        ("evaluate", "SET: expected it behind `ptmst evaluate`, found none; `ptmst evaluate --help` explains it"),
        ("report", "SET [SET ...]: expected it behind `ptmst report`, found none; `ptmst report --help` explains it"),
        (
            "data check",
            "NAME: expected it behind `ptmst data check`, found none; `ptmst data check --help` explains it",
        ),
        # Phases and end points.
        ("distill s --out o --phases", "--phases: expected a value, [PHASE [PHASE ...]], found none; name it"),
        ("distill s --out o --phases 200:5", f"--phases: {PHASE} 200:5; `--help` explains it"),
        ("distill s --out o --phases 9:5:0-2,9:7:1-3", f"--phases: {PHASE} 9:5:0-2,9:7:1-3; `--help` explains it"),
        ("distill s --out o --phases 9:5:-1-2", f"--phases: {PHASE} 9:5:-1-2; `--help` explains it"),
        ("distill s --out o --phases 9:5:0-2 x --steps 1", f"--phases: {PHASE} x; `--help` explains it"),
        ("distill s --out o --phases=9.5:5:0-2", f"--phases: {PHASE} 9.5:5:0-2; `--help` explains it"),
        ("distill s --out o --phases=", "--phases: expected a value, [PHASE [PHASE ...]], found none; name it behind"),
        ("teach --endpoints", "--endpoints: expected a value, K,K,…|all, found none; name it behind the flag"),
        ("teach --endpoints=", "--endpoints: expected a value, K,K,…|all, found none; name it behind the flag"),
        ("teach --endpoints 5,,7", "--endpoints: expected epochs such as 5,7, or all, found 5,,7; `--help` explains"),
        ("teach --endpoints none", "--endpoints: expected epochs such as 5,7, or all, found none; `--help` explains"),
        ("teach --endpoints -1", "endpoints: expected epochs in 1..10, found -1; lower it or raise epochs"),
        (
            "teach --endpoints 5 7",
            "7: expected a flag, found a word too many after --endpoints 5: several values are written with commas; ",
        ),
        # A value of another kind.
        ("teach --epochs five", "--epochs: expected INT, found five; `--help` explains it"),
        ("teach --batch_size=3.5", "--batch-size: expected INT, found 3.5; `--help` explains it"),
        ("ablate --pairs 1,x", "--pairs: expected INT,…, found 1,x; `--help` explains it"),
        ("distill s --chunk x", "--chunk: expected a number of images, none or auto, found x; `--help` explains it"),
        ("teach --data.mean 0.5 0.5", "--data.mean: expected FLOAT FLOAT FLOAT|none, found 0.5 0.5; `--help` explains"),
        ("evaluate s --loss wbc", "--loss: expected {wbce,bce,infonce,kl,mse,cwcl,siglip,none}, found wbc; did you "),
        ("distill s --quiet=yes", "--quiet: expected no value, found yes; drop it"),
        # A flag that is none.
        ("teach --data.nmae x", "--data.nmae: no such flag of `ptmst teach`; did you mean --data.name?"),
        ("teach --name x", "--name: no such flag of `ptmst teach`; did you mean --data.name?"),
        ("teach --dat.name x", "--dat.name: no such flag of `ptmst teach`; did you mean --data.name?"),
        ("teach --epoch 3", "--epoch: no such flag of `ptmst teach`; did you mean --epochs?"),
        ("distill s --rates.image 1", "--rates.image: no such flag of `ptmst distill`; did you mean --rates.images?"),
        ("teach --zzzzz x", "--zzzzz: no such flag of `ptmst teach`; `ptmst teach --help` lists them"),
        ("teach extra", "extra: expected a flag, found a word too many; `ptmst teach --help` lists them"),
        ("teach --data.mean none x", "x: expected a flag, found a word too many; `ptmst teach --help` lists them"),
    ],
)
def test_a_mistake_is_one_line_of_ours(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split(" ")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ptmst: {message}") and said.count("\n") == 1


def test_what_passes_is_parsed() -> None:
    command: Any = parse(["distill", "s", "--phases", "6:2:0-1", "8:3:1-2", "--out=o", "--no-resume", "--chunk", "-1"])
    assert command.settings.phases == (Phase(6, 2, (0, 1)), Phase(8, 3, (1, 2)))
    assert str(command.settings.out) == "o" and command.settings.chunk == -1 and not command.resume
    teach: Any = parse(["teach", "--data.mean", "none", "--batch_size", "3", "--endpoints=all"])
    assert teach.settings.data.mean is None and teach.settings.batch_size == 3 and teach.settings.endpoints == "all"
