"""Threads of our own processes sleep while they wait, unless the user has settled that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ptmst.support.threads import wait_asleep


def test_the_users_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setattr(os, "environ", {name: "its own"})
        assert wait_asleep() is False and os.environ == {name: "its own"}
    monkeypatch.setattr(os, "environ", {"HOME": "/"})
    assert wait_asleep() is True
    assert os.environ == {"HOME": "/", "GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "0"}


PROGRAM = """
import os, sys
from ptmst.support import threads
own = threads.wait_asleep
def watched():
    assert "torch" not in sys.modules  # whose OpenMP reads it as it is loaded
    print(own(), os.environ["GOMP_SPINCOUNT"])
threads.wait_asleep = watched
from ptmst.cli import main
sys.argv = ["ptmst", "--version"]
main()
"""


@pytest.mark.slow
def test_the_command_line_asks_for_it_before_torch_is_there() -> None:
    settled = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    environment = {name: value for name, value in os.environ.items() if name not in settled}
    said = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.startswith("True 5000\n")
