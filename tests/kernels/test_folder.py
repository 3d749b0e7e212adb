"""The folder kernels/ has the name of a package that transformers looks for, and is never mistaken for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
each_folder = pytest.mark.parametrize("root", [True, False], ids=["from the root", "from elsewhere"])


def run(code: str, folder: Path, *paths: Path) -> str:
    """What a Python process prints that runs `code` with `folder` as its current folder."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


TRANSFORMERS = """
import torch
from transformers import AutoModel, BertConfig

folder = {folder!r}
sizes = dict(hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
AutoModel.from_config(BertConfig(vocab_size=11, **sizes)).save_pretrained(folder)
model = AutoModel.from_pretrained(folder)
print(*model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape)
import ptmst.kernels
again = AutoModel.from_pretrained(folder)
print(all(torch.equal(v, again.state_dict()[name]) for name, v in model.state_dict().items()))
"""


@each_folder
def test_transformers_loads_a_model(root: bool, tmp_path: Path) -> None:
    """As a user's own program does, without any precaution, before and after it imports ours."""
    pytest.importorskip("transformers")
    code = TRANSFORMERS.format(folder=str(tmp_path / "model"))
    assert run(code, ROOT if root else tmp_path).splitlines()[:2] == ["1 3 8", "True"]


AVAILABLE = """
from transformers.utils import import_utils
print(getattr(import_utils, "is_kernels_available", lambda: False)())
"""


@each_folder
def test_transformers_says_that_there_is_no_such_package(root: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert run(AVAILABLE, ROOT if root else tmp_path) == "False"


@each_folder
def test_an_installed_package_of_that_name_is_the_one_imported(root: bool, tmp_path: Path) -> None:
    (tmp_path / "site" / "kernels").mkdir(parents=True)
    (tmp_path / "site" / "kernels" / "__init__.py").write_text("__version__ = '0.9'")
    code = "import kernels; from ptmst import kernels as ours; print(kernels.__version__, ours.__name__)"
    assert run(code, ROOT if root else tmp_path, tmp_path / "site") == "0.9 ptmst.kernels"


def test_our_kernels_are_imported_under_their_own_name_only() -> None:
    command = [sys.executable, "-c", "import kernels.python.kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    expected = "ImportError: expected to be imported as ptmst.kernels, found kernels.python.kernels; "
    assert done.stderr.splitlines()[-1] == expected + "write `from ptmst import kernels`"
