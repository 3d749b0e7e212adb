"""`ptmst COMMAND --help`: what it does, its flags in groups, and examples.

A flag's text is the docstring of its field, its group is in the field's metadata, and how its value is written is what
the parser accepts.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from ptmst.cli.arguments import FIRST, arguments, one_line
from ptmst.cli.flags import Command

_INPUT, _LAST = "input", ("compute", "run")
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
    console.print(Text(" ".join(["usage:", prog, *needed, "[FLAGS]"])), Text(f"\n{one_line(kind.__doc__)}\n"), sep="\n")
    for group, members in _grouped(entries).items():
        lines = Text("\n").join(_lines(entry, console.width - 4) for entry in members)
        console.print(Panel(lines, title=group, title_align="left", border_style="dim", width=console.width))
    console.print(Text("\n".join(["", "examples:", *(f"  {line}" for line in kind.examples)])), soft_wrap=True)


def _grouped(entries: list[Entry]) -> dict[str, list[Entry]]:
    """Input first, then method and what else there is, then compute and run; few flags in one group, without a name."""
    flags = [entry for entry in entries if entry.group != _INPUT]
    named = dict.fromkeys([_INPUT, FIRST, *(e.group for e in flags if e.group not in _LAST), *_LAST])
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


def _entries(kind: type, default: Any) -> Iterator[Entry]:
    for one in arguments(kind, default):
        if one.switch:
            yield Entry(one.group, ", ".join(one.flags), f"{one.text} {_default(str(one.default))}", False)
            continue
        shown = "" if one.required else " ".join(one.spec.str_from_instance(one.default))
        text = f"{one.text} {'(required)' if one.required else _default(shown)}".rstrip()
        if one.positional:
            yield Entry(_INPUT, one.metavar, text, one.required)
        else:
            # Not [PATH [PATH ...]]: behind a flag there is a value.
            usage = one.metavar[1:-1] if one.metavar.startswith("[") else one.metavar
            yield Entry(one.group, f"--{one.name} {usage}", text, one.required)


def _default(shown: str) -> str:
    return f"(default:{_NO_BREAK}{shown})" if shown else ""
