"""The arguments of a command: what there is, for its help; and what was typed, checked in words of ours.

The parser behind it accepts the same, but tells its own users and not ours what is wrong.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_type_hints

import tyro
from tyro.conf import FlagCreatePairsOff, Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ptmst import schema
from ptmst.cli.flags import Command
from ptmst.config import Places
from ptmst.errors import InputError

FIRST = "method"
"""The group of what names none."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a command."""

    name: str
    """As it is typed, without the hyphens before it: data.image-size."""
    group: str
    text: str
    default: Any
    spec: PrimitiveConstructorSpec[Any]
    """How its value is written."""
    metavar: str
    positional: bool
    switch: bool
    """Whether it is given without a value."""
    one_way: bool
    """Of a switch, whether it has no opposite."""

    @property
    def required(self) -> bool:
        return self.default is tyro.MISSING

    @property
    def flags(self) -> list[str]:
        """Of a switch also its opposite; none where it is positional."""
        if self.positional:
            return []
        before, dot, last = self.name.rpartition(".")
        return [f"--{self.name}", *([f"--{before}{dot}no-{last}"] if self.switch and not self.one_way else [])]

    def read(self, words: Sequence[str], where: str) -> None:
        """Raise InputError where these are no value of it."""
        if not words or ("" in words and self.metavar != "STR"):
            raise InputError(f"{where}: expected a value, {self.metavar}, found none; name it behind the flag")
        shown = " ".join(words) or "nothing"
        choices = self.spec.choices or ()
        for word in words if choices else ():
            if word not in choices:
                near = schema.nearest(word, choices)
                raise InputError(f"{where}: expected {self.metavar}, found {shown}{near}")
        try:
            self.spec.instance_from_str(list(words))
        except (ValueError, TypeError, IndexError, AssertionError) as error:
            ours = str(error) if str(error).startswith("expected ") else f"expected {self.metavar}, found {shown}"
            raise InputError(f"{where}: {ours}; `--help` explains it") from None


def arguments(kind: type, default: Any, prefix: str = "", group: str = FIRST) -> Iterator[Argument]:
    """Those of a command, or of settings in it, with their defaults from `default`."""
    hints, texts = get_type_hints(kind, include_extras=True), _docstrings(kind)
    shared = {f.name for common in (Places, Command) for f in dataclasses.fields(common)}
    for f in sorted(dataclasses.fields(kind), key=lambda f: f.name in shared):
        value, within = getattr(default, f.name), f.metadata.get("group", group)
        if dataclasses.is_dataclass(value):
            yield from arguments(type(value), value, "" if f.name == "settings" else f"{prefix}{f.name}.", within)
            continue
        extras = get_args(hints[f.name])[1:]
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(hints[f.name], set()))
        assert isinstance(spec, PrimitiveConstructorSpec)
        yield Argument(
            name=f"{prefix}{f.name.replace('_', '-')}",
            group=within,
            text=texts[f.name],
            default=value,
            spec=spec,
            metavar=next((m for e in extras if isinstance(m := getattr(e, "metavar", None), str)), spec.metavar),
            positional=Positional in extras,
            switch=isinstance(value, bool),
            one_way=FlagCreatePairsOff in extras,
        )


def check(program: str, default: Command, words: Sequence[str]) -> None:
    """Raise InputError where a command line cannot be meant: an unknown flag, a value that is missing or of another
    kind, a word too many, an argument that is missing."""
    known = list(arguments(type(default), default))
    by_flag = {flag: argument for argument in known for flag in argument.flags}
    places = [argument for argument in known if argument.positional]
    left, before = list(words), ""
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            if not places:
                raise InputError(
                    f"{word}: expected a flag, found a word too many{before}; `{program} --help` lists them"
                )
            place = places.pop(0)
            place.read(_values(place, [word], left), place.metavar)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in by_flag:
            raise InputError(f"{flag}: no such flag of `{program}`; {_near(flag, by_flag, program)}")
        argument = by_flag[flag]
        if argument.switch:
            if equals:
                raise InputError(f"{flag}: expected no value, found {value}; drop it")
            continue
        given = _values(argument, [value] if equals else [], left)
        argument.read(given, flag)
        many = "," in argument.metavar and argument.spec.nargs == 1
        before = f" after {flag} {given[0]}: several values are written with commas" if many else ""
    if missing := [place.metavar for place in places if place.required]:
        raise InputError(f"{missing[0]}: expected it behind `{program}`, found none; `{program} --help` explains it")
    for argument in known:
        if argument.required and not argument.positional and argument.flags[0] not in _flags(words):
            raise InputError(f"{argument.flags[0]}: expected a value, {argument.metavar}, found none; name it")


def _flags(words: Sequence[str]) -> set[str]:
    return {word.partition("=")[0].replace("_", "-") for word in words}


def _near(flag: str, known: Iterable[str], program: str) -> str:
    """The nearest flags, whose tables may have been left out or mistaken."""
    words = {name: max(_alike(flag, name), _alike(flag, f"--{name.rpartition('.')[2]}") - 0.05) for name in known}
    best = sorted(words, key=words.__getitem__, reverse=True)[:3]
    close = [name for name in best if words[name] > max(0.6, words[best[0]] - 0.1)]
    return f"did you mean {' or '.join(close)}?" if close else f"`{program} --help` lists them"


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one.lstrip("-"), other.lstrip("-")).ratio()


def _values(argument: Argument, first: list[str], left: list[str]) -> list[str]:
    """Those of an argument: the first, where it is known, and what it takes off the words that are left."""
    nargs, taken = argument.spec.nargs, list(first)
    most: Any = nargs[-1] if isinstance(nargs, tuple) else nargs
    while left and not left[0].startswith("--") and (most == "*" or len(taken) < most):
        if isinstance(nargs, tuple) and taken == ["none"]:
            break
        taken.append(left.pop(0))
    return taken


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
                        docstrings[name] = one_line(text)
    return docstrings


def one_line(docstring: str | None) -> str:
    return " ".join((docstring or "").split())
