"""The contract between packages: who may import whom, what is never imported, and that light commands stay light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ptmst
from bench.house import imported, modules, own, package

ROOT = Path(__file__).parents[1]
GROUND = {"errors", "config", "schema"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "schema": {"errors", "config"},
    "presets": GROUND,
    "support": {"errors", "config"},
    "kernels": set(),
    "data": GROUND | {"support"},
    "students": GROUND | {"support", "data", "kernels"},
    "recipe": GROUND | {"support", "data", "students"},
    "synthetic": GROUND | {"support", "data", "students", "recipe"},
    "trajectories": GROUND | {"support", "students", "recipe", "kernels"},
    "engine": GROUND | {"support", "students", "synthetic", "trajectories"},
    "teachers": GROUND | {"support", "data", "students", "recipe", "trajectories", "engine", "kernels"},
    "evaluation": GROUND | {"support", "data", "students", "recipe", "synthetic", "trajectories"},
    "retrieval": GROUND | {"support", "data", "students", "recipe", "synthetic", "trajectories", "evaluation"},
    "distillation": GROUND
    | {"support", "data", "students", "synthetic", "trajectories", "engine", "evaluation", "kernels"},
    "diagnosis": GROUND
    | {"support", "data", "students", "recipe", "synthetic", "trajectories", "engine", "evaluation", "distillation"},
    "exchange": GROUND | {"support", "data", "students", "recipe", "synthetic", "trajectories"},
    "report": GROUND
    | {"support", "data", "synthetic", "trajectories", "evaluation", "retrieval", "distillation", "diagnosis"},
}
"""A package, or a file at the top → what of ours it may import beside itself. The order is that of the floors."""
ROOF = {"studies", "cli", "__main__", "__init__"}
"""They put the rest together: nothing below imports them."""
SILENT = {"synthetic", "trajectories", "engine"}
"""They never write to a terminal, nor know that there is one."""


MODULES = modules()


def forbidden(module: str, source: str) -> list[str]:
    """What a module imports against the contract."""
    home, found = package(module), []
    if home not in ROOF:
        found = [other for other in own(source, MODULES) if package(other) not in {home, *MAY_IMPORT[home]}]
    if home in SILENT:
        loud = {"ptmst.support.progress", "rich", "tyro"}
        found += [other for other in imported(source, MODULES) if other in loud or other.split(".")[0] in loud]
    return sorted(f"{module} imports {other}" for other in found)


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that are left when those that import nothing that is left are taken away, again and again."""
    left = {name: set(others) for name, others in arrows.items()}
    while free := {name for name, others in left.items() if not others & left.keys() - {name}}:
        for name in free:
            del left[name]
    return sorted(left)


def type_checking(module: ast.Module) -> ast.If:
    (block,) = (n for n in module.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return block


def test_every_package_has_a_contract() -> None:
    assert {package(name) for name in MODULES} == {*MAY_IMPORT, *ROOF}
    floors = list(MAY_IMPORT)
    for name, others in MAY_IMPORT.items():
        assert all(floors.index(other) < floors.index(name) for other in others), name


def test_nothing_is_imported_against_the_contract() -> None:
    assert not [one for name, path in MODULES.items() for one in forbidden(name, path.read_text("utf-8"))]


def test_what_is_against_the_contract_is_seen() -> None:
    fine = "from ptmst.trajectories.spans import Span\nfrom ptmst import kernels\nimport torch"
    assert forbidden("trajectories.store", fine) == []
    assert forbidden("trajectories.store", "def f():\n    from ptmst.report.page import x") == [
        "trajectories.store imports report.page"
    ]
    assert forbidden("data.pairs", "from ptmst import config, teachers") == ["data.pairs imports teachers"]
    assert forbidden("support.files", "import ptmst.kernels.shortcut") == ["support.files imports kernels.shortcut"]
    assert forbidden("evaluation.evaluate", "from ptmst import DistilledSet") == [
        "evaluation.evaluate imports __init__"
    ]
    assert forbidden("engine.outer_step", "from ptmst.support import progress\nimport rich.table") == [
        "engine.outer_step imports ptmst.support.progress",
        "engine.outer_step imports rich.table",
    ]


def test_no_circles_between_modules() -> None:
    arrows = {}
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text("utf-8"))
        if name == "__init__":
            tree.body.remove(type_checking(tree))
        arrows[name] = own(ast.unparse(tree), MODULES)
    assert circles(arrows) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"e"}, "e": set()}) == ["a", "b", "c"]


def test_kernels_stand_alone() -> None:
    allowed = {"torch", "triton", "numpy", *sys.stdlib_module_names}
    for name, path in MODULES.items():
        if package(name) == "kernels":
            found = {
                other for other in imported(path.read_text("utf-8"), MODULES) if other.split(".")[0] not in allowed
            }
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


@pytest.mark.slow
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
