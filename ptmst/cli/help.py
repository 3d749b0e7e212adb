"""`ptmst COMMAND --help`: what it does, its flags in groups, and examples.

A flag's text is the docstring of its field, its group is in the field's metadata, and how its value is written is what
the parser accepts.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ptmst.cli.flags import Command

_INPUT, _FIRST, _LAST = "input", "method", ("compute", "run")
_FEW = 6
"""Flags that need no groups."""
_INDENT = 24
_WIDEST = 120
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One argument of a command, as help shows it."""

    group: str
    usage: str
    """The flag and its value, or the value alone where it is positional."""
    text: str
    required: bool


def show_help(prog: str, default: Command) -> None:
    """Print the help of a command, whose flags have their defaults from `default`."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    kind, entries = type(default), list(_entries(type(default), default))
    entries.append(Entry("run", "-h, --help", "Show this help and exit.", False))
    console = Console(highlight=False)
    console.width = min(console.width, _WIDEST)
    needed = [entry.usage for entry in entries if entry.required]
    console.print(
        Text(" ".join(["usage:", prog, *needed, "[FLAGS]"])), Text(f"\n{_one_line(kind.__doc__)}\n"), sep="\n"
    )
    for group, members in _grouped(entries).items():
        lines = Text("\n").join(_lines(entry, console.width - 4) for entry in members)
        console.print(Panel(lines, title=group, title_align="left", border_style="dim", width=console.width))
    console.print(Text("\n".join(["", "examples:", *(f"  {line}" for line in kind.examples)])), soft_wrap=True)


def _grouped(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Input first, then method and what else there is, then compute and run; few flags in one group, without a name."""
    flags = [entry for entry in entries if entry.group != _INPUT]
    named = dict.fromkeys([_INPUT, _FIRST, *(e.group for e in flags if e.group not in _LAST), *_LAST])
    groups = {name: [entry for entry in entries if entry.group == name] for name in named}
    if len(flags) <= _FEW:
        groups = {_INPUT: groups[_INPUT], "flags": flags}
    return {name: members for name, members in groups.items() if members}


def _lines(entry: Entry, width: int) -> Any:
    from rich.text import Text

    text = textwrap.wrap(entry.text, width - _INDENT, break_long_words=False, break_on_hyphens=False)
    text = [line.replace(_NO_BREAK, " ") for line in text]
    shown = Text(entry.usage, style="bold")
    if len(entry.usage) < _INDENT - 1:
        shown.append(" " * (_INDENT - len(entry.usage)) + text.pop(0), style="not bold")
    for line in text:
        shown.append(f"\n{' ' * _INDENT}{line}", style="not bold")
    return shown


def _entries(kind: type, default: Any, prefix: str = "", group: str = _FIRST) -> Iterator[Entry]:
    hints, texts = get_type_hints(kind, include_extras=True), _docstrings(kind)
    shared = {f.name for f in dataclasses.fields(Command)}
    for f in sorted(dataclasses.fields(kind), key=lambda f: f.name in shared):
        value, within = getattr(default, f.name), f.metadata.get("group", group)
        if dataclasses.is_dataclass(value):
            yield from _entries(type(value), value, "" if f.name == "settings" else f"{prefix}{f.name}.", within)
            continue
        extras, required = get_args(hints[f.name])[1:], value is tyro.MISSING
        flag = f"--{prefix}{f.name.replace('_', '-')}"
        if isinstance(value, bool):
            usage = flag if FlagCreatePairsOff in extras else f"{flag}, --{prefix}no-{f.name.replace('_', '-')}"
            yield Entry(within, usage, f"{texts[f.name]} {_default(str(value))}", False)
            continue
        written = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hints[f.name], set()))
        assert isinstance(written, PrimitiveConstructorSpec)
        metavar = next((m for e in extras if isinstance(m := getattr(e, "metavar", None), str)), written.metavar)
        shown = "" if required else " ".join(written.str_from_instance(value))
        text = f"{texts[f.name]} {'(required)' if required else _default(shown)}".rstrip()
        if Positional in extras:
            yield Entry(_INPUT, metavar, text, required)
        else:
            # Not [PATH [PATH ...]]: behind a flag there is a value.
            usage = metavar[1:-1] if metavar.startswith("[") else metavar
            yield Entry(within, f"{flag} {usage}", text, required)


def _default(shown: str) -> str:
    return f"(default:{_NO_BREAK}{shown})" if shown else ""


@cache
def _docstrings(kind: type) -> dict[str, str]:
    """The docstrings of a dataclass's fields, those that it inherits included."""
    docstrings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            assert isinstance(definition, ast.ClassDef)
            for field, after in pairwise(definition.body):
                match field, after:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        docstrings[name] = _one_line(text)
    return docstrings


def _one_line(docstring: str | None) -> str:
    return " ".join((docstring or "").split())
