"""The structure of the source, counted: `python -m bench.house [ROOT]` prints files, packages and the arrows between.

An arrow is one module, or one package, that imports another of ours; several imports of one module are one arrow.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of ours, without its leading `ptmst.`, and its file."""
    kernels = root / "kernels" / "python" / "kernels"
    kernels = kernels if kernels.is_dir() else root / "kernels"
    paths = {path.relative_to(root / "ptmst"): path for path in (root / "ptmst").rglob("*.py")}
    paths |= {Path("kernels") / path.relative_to(kernels): path for path in kernels.rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in paths.items()}


def imported(source: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Every module that is imported, at the top or inside a function; a name of a package as the package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            if not node.module or node.level:
                raise ValueError(f"line {node.lineno}: expected an absolute import, found a relative one")
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside.removeprefix("ptmst.") in known else node.module


def own(source: str, known: Mapping[str, Path]) -> set[str]:
    """Modules of ours that are imported, without their leading `ptmst.`; the public face as `__init__`."""
    names = (name for name in imported(source, known) if name.split(".")[0] == "ptmst")
    return {name.removeprefix("ptmst.") if name != "ptmst" else "__init__" for name in names}


def package(module: str) -> str:
    return module.split(".")[0]


def counts(root: Path) -> dict[str, int]:
    """Files and arrows, the public face and imports for type checkers apart."""
    known = modules(root)
    arrows = {
        (name, other)
        for name, path in known.items()
        if name != "__init__"
        for other in own(path.read_text("utf-8"), known) - {name, "__init__"}
    }
    between = {(package(a), package(b)) for a, b in arrows if package(a) != package(b)}
    ground = {"errors", "config", "schema", "support", "files", "seeds", "devices", "progress"}
    return {
        "files": len(known),
        "files at the top of ptmst/": len(list((root / "ptmst").glob("*.py"))),
        "packages in ptmst/": len(list((root / "ptmst").glob("*/__init__.py"))),
        "arrows between files": len(arrows),
        "arrows between rooms at the top": len(between),
        "the same without errors, settings and support": len([1 for a, b in between if not {a, b} & ground]),
    }


if __name__ == "__main__":
    for what, number in counts(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT).items():
        print(f"{number:5} {what}")
