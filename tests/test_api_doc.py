"""docs/api.md is complete and current: every public name, with a docstring that also says what is raised."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import pytest

import ptmst
from bench import api
from ptmst import InputError, config, kernels

TEXT = api.PAGE.read_text("utf-8")
NAMES = api.public()
IDS = [name.shown for name in NAMES]
ERRORS = {"InputError", "Diverged", "ValueError", "RuntimeError", "OSError", "TypeError"}
CHECKS = re.compile(r"^_?(check|refuse)")
"""Functions that are called for their errors."""


def tree(function: Callable[..., Any]) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))


def raised(function: Callable[..., Any], deep: bool = True) -> set[str]:
    """Errors that a function raises itself, or by the checks that it calls."""
    found = set()
    for node in ast.walk(tree(function)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            found |= {node.exc.func.id} & ERRORS
        if deep and isinstance(node, ast.Call):
            for called in reached(function, node.func):
                found |= raised(called, deep=False)
    return found


def reached(function: Callable[..., Any], called: ast.expr) -> list[Callable[..., Any]]:
    """The check that is called, where its name says that it is one."""
    module = vars(inspect.getmodule(inspect.unwrap(function)))
    match called:
        case ast.Name(id=name) if CHECKS.match(name):
            value = module.get(name)
        case ast.Attribute(value=ast.Name(id=owner), attr=name) if CHECKS.match(name):
            value = getattr(module.get(owner), name, None)
        case _:
            value = None
    return [value] if inspect.isfunction(value) else []


def described() -> list[tuple[str, Callable[..., Any], str]]:
    """Every public function and method with its docstring; a class's own tells what making one raises."""
    found = []
    for name in NAMES:
        value = name.value
        if not isinstance(value, type):
            found.append((name.shown, value, value.__doc__ or ""))
            continue
        for method, about in api.methods(value):
            function = api.function(about)
            found.append((f"{name.shown}.{method}", function, function.__doc__ or ""))
        for maker in ("__init__", "__post_init__"):
            written = vars(value).get(maker)
            if inspect.isfunction(written) and written.__code__.co_filename.endswith(name.source):
                found.append((f"{name.shown}.{maker}", written, value.__doc__ or ""))
    return found


DESCRIBED = described()


@pytest.mark.slow
def test_the_page_is_current() -> None:
    assert api.page() == TEXT, "run python -m bench.api"


def test_every_public_name_is_on_the_page_once() -> None:
    headings = re.findall(r"^### (\S+)$", TEXT, re.MULTILINE)
    wanted = {*ptmst.__all__} - {"__version__"} | {f"kernels.{name}" for name in kernels.__all__}
    assert len(headings) == len(set(headings))
    assert set(headings) == wanted | {"presets.experiment"}
    assert "ptmst.__version__" in TEXT and "## Other" not in TEXT


def test_every_source_exists() -> None:
    sources = re.findall(r"^Source: \[(.+)\]\(\.\./(.+)\)$", TEXT, re.MULTILINE)
    assert len(sources) == len(NAMES)
    assert all(shown == path and (api.ROOT / path).is_file() for shown, path in sources)


@pytest.mark.parametrize("name", NAMES, ids=IDS)
def test_a_public_name_has_a_docstring(name: api.Name) -> None:
    value = name.value
    docstring = (vars(value)["__doc__"] if isinstance(value, type) else value.__doc__) or ""
    assert docstring and not docstring.startswith(f"{name.name}("), "dataclasses get a signature as their docstring"


@pytest.mark.parametrize(("name", "function", "docstring"), DESCRIBED, ids=[name for name, *_ in DESCRIBED])
def test_what_is_raised_is_said(name: str, function: Callable[..., Any], docstring: str) -> None:
    assert docstring, "has no docstring"
    errors = raised(function)
    assert not errors or "Raises" in docstring, errors
    assert not errors or any(error in docstring for error in errors), errors


@pytest.mark.parametrize("kind", [value for value in vars(config).values() if is_dataclass(value)])
def test_every_setting_is_explained(kind: type) -> None:
    """But for tables of settings, whose own settings are explained."""
    missing = {str(field.type) for field, text in api.described_fields(kind) if not text}
    assert missing <= {"DataConfig", "EncoderConfig", "LeafRates"}


def test_what_is_raised_is_found() -> None:
    assert raised(test_what_is_raised_is_found) == set()
    assert raised(reading) == {"InputError"}
    assert raised(check_reading) == {"InputError"}


def reading() -> None:
    check_reading()


def check_reading() -> None:
    raise InputError("nothing to read")
