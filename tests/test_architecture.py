"""The floors of the house: no module imports one above it, and light commands load nothing heavy."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ptmst

ROOT = Path(__file__).parents[1]
FLOORS = (
    "errors kernels.layout kernels.ops kernels.reference kernels.steps kernels.native kernels.triton_kernels.tiles "
    "kernels.triton_kernels.shortcut kernels.triton_kernels.matching kernels.triton_kernels.update "
    "kernels.triton_kernels.contrast kernels.triton_kernels kernels.dispatch kernels.shortcut kernels.matching "
    "kernels.update kernels.contrast kernels",
    "allocator config presets files published seeds devices progress pool torch_compat compilation capture flat "
    "data.captions data.annotations data.classes data.karpathy data.tables data.shards data.sources data.images "
    "data.composition data.generated data.scenes data.digits data.pairs data.batches data.check data.render data",
    "towers encoders similarity contrast synthetic",
    "derivatives features matching shortcut codings store rotation room warmup teachers unroll distilled legacy "
    "exchange baselines",
    "checkpoints distillation evaluation",
    "inspection results report doctor demo ablation cli __main__ __init__",
)
"""A module imports from lower floors and from its left neighbours. `__init__` names all of them, when they are used."""
RANK = {name: (floor, i) for floor, names in enumerate(FLOORS) for i, name in enumerate(names.split())}


def on_disk() -> dict[str, Path]:
    """Module, without its leading `ptmst.`, → file."""
    paths = {path.relative_to(ROOT / "ptmst"): path for path in (ROOT / "ptmst").rglob("*.py")}
    sources = ROOT / "kernels" / "python"
    paths |= {path.relative_to(sources): path for path in sources.rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imported(source: str) -> Iterator[str]:
    """Every module that is imported, at the top or inside a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside.removeprefix("ptmst.") in RANK else node.module


def own(source: str) -> set[str]:
    """Modules of ours that are imported, without their leading `ptmst.`."""
    names = (name for name in imported(source) if name.split(".")[0] == "ptmst")
    return {name.removeprefix("ptmst.") if name != "ptmst" else "__init__" for name in names}


def upward(name: str, source: str) -> list[str]:
    return sorted(f"{name} imports {other}" for other in own(source) if RANK[other] >= RANK[name])


def type_checking(module: ast.Module) -> ast.If:
    (block,) = (n for n in module.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return block


def test_every_module_has_a_floor() -> None:
    assert set(on_disk()) == set(RANK)
    assert len(RANK) == sum(len(names.split()) for names in FLOORS)


def test_nothing_imports_upward() -> None:
    found = []
    for name, path in on_disk().items():
        tree = ast.parse(path.read_text("utf-8"))
        if name == "__init__":
            tree.body.remove(type_checking(tree))
        found += upward(name, ast.unparse(tree))
    assert not found


def test_upward_imports_are_seen() -> None:
    assert upward("store", "from ptmst.shortcut import Expert\nfrom ptmst import files, kernels\nimport torch") == []
    assert upward("store", "def f():\n    from ptmst.report import Row") == ["store imports report"]
    assert upward("store", "from ptmst import config, teachers") == ["store imports teachers"]
    assert upward("files", "import ptmst.kernels.shortcut, ptmst.flat") == ["files imports flat"]
    assert upward("store", "from ptmst import DistilledSet") == ["store imports __init__"]


def test_kernels_stand_alone() -> None:
    allowed = {"torch", "triton", "numpy", *sys.stdlib_module_names}
    for name, path in on_disk().items():
        if name.split(".")[0] == "kernels":
            found = {other for other in imported(path.read_text("utf-8")) if other.split(".")[0] not in allowed}
            assert all(other.startswith("ptmst.kernels") for other in found), f"{name} imports {found}"


LIGHT = """
import contextlib, io, sys
import ptmst, ptmst.cli
for command in (["--help"], *([name, "--help"] for name in ptmst.cli.COMMANDS)):
    try:
        with contextlib.redirect_stdout(io.StringIO()) as shown:
            ptmst.cli.parse(command)
    except SystemExit as end:
        assert end.code == 0 and "usage: ptmst" in shown.getvalue(), command
    else:
        raise SystemExit(f"{command} went on")
ptmst.cli.parse(["distill", "--store", "store", "--out", "set"])
print(*sorted({"torch", "timm", "open_clip", "sklearn", "matplotlib"} & set(sys.modules)))
"""


def test_a_command_line_is_parsed_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_public_names_are_those_that_type_checkers_see() -> None:
    seen: dict[str, str] = {}
    for node in type_checking(ast.parse((ROOT / "ptmst/__init__.py").read_text("utf-8"))).body:
        assert isinstance(node, ast.ImportFrom) and node.module
        seen |= {alias.name: node.module for alias in node.names if alias.name == alias.asname}
    assert {*seen, "__version__"} == set(ptmst.__all__)
    assert set(ptmst.__all__) <= set(dir(ptmst))
    for name, home in seen.items():
        assert getattr(ptmst, name) is getattr(importlib.import_module(home), name)
