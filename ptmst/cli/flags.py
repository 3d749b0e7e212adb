"""What the commands share: flags, how their values are written, and the input that has a flag too."""

from __future__ import annotations

import shlex
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import FlagCreatePairsOff, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    UnsupportedTypeAnnotationError,
)

from ptmst import schema
from ptmst.config import RUN, Chunk, Endpoints, Phase
from ptmst.errors import InputError

CONTINUES, STARTS_AGAIN = "the same command continues", "the same command starts again"
"""After Ctrl-C; a command says which, as `stopped`."""


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What every command has."""

    stopped: ClassVar[str] = STARTS_AGAIN
    """What happens when an interrupted command is typed again."""
    examples: ClassVar[tuple[str, ...]]
    """Command lines to end its help with."""
    input: ClassVar[str] = ""
    """The positional argument that can be given by a flag of the same name too."""

    quiet: Annotated[bool, FlagCreatePairsOff] = field(default=False, metadata=RUN)
    """Show only results, warnings and errors."""

    @abstractmethod
    def run(self) -> None:
        """Do what the command is for."""


@dataclass(frozen=True, kw_only=True)
class WithPreset(Command):
    """A command whose settings can come from a preset and a file."""

    preset: Annotated[str | None, arg(metavar="NAME[,NAME]")] = field(default=None, metadata=RUN)
    """Defaults for the other flags: EXPERIMENT[,METHOD], such as coco-200,lors; `ptmst presets` lists them."""
    config: Annotated[Path | None, arg(metavar="FILE")] = field(default=None, metadata=RUN)
    """TOML file with a table for each command; it overrides the preset, and flags override it."""


class Text(str):
    """A word of a command line as it is, one of several with spaces between them."""

    __slots__ = ()


def typed() -> str:
    """The command line, to be shown beside what it made."""
    return shlex.join(["ptmst", *sys.argv[1:]])


def value_of(flag: str, arguments: Sequence[str]) -> str | None:
    """The last value of a flag, None where it is not given or `none`."""
    values = split_off(flag, arguments)[0]
    return values[-1] if values and values[-1] != "none" else None


def split_off(flag: str, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The values of a flag, and the arguments without it."""
    values, rest, words = list[str](), list[str](), iter(arguments)
    for word in words:
        if word != flag and not word.startswith(f"{flag}="):
            rest.append(word)
            continue
        value = next(words, "") if word == flag else word.removeprefix(f"{flag}=")
        if not value or (word == flag and value.startswith("--")):
            raise InputError(f"{flag}: expected a value, found none; name it behind the flag")
        values.append(value)
    return values, rest


def constructors() -> ConstructorRegistry:
    """How values are written on a command line where tyro does not know it, or says it in another way."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if (kind := schema.without_none(info.type)) is None:
            return None
        inner = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
        if isinstance(inner, UnsupportedTypeAnnotationError):
            return None

        def read(words: list[str]) -> Any:
            if words == ["None"]:
                raise ValueError("expected none in lower case, found None")
            return None if words == ["none"] else inner.instance_from_str(words)

        return PrimitiveConstructorSpec(
            nargs=1 if inner.nargs == 1 else (1, inner.nargs),  # type: ignore[arg-type]
            metavar=f"{{{','.join((*inner.choices, 'none'))}}}" if inner.choices else f"{inner.metavar}|none",
            instance_from_str=read,
            is_instance=lambda value: value is None or inner.is_instance(value),
            str_from_instance=lambda value: ["none"] if value is None else inner.str_from_instance(value),
            choices=(*inner.choices, "none") if inner.choices else None,
        )

    @registry.primitive_rule
    def path(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda words: schema.parse_path(words[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    @registry.primitive_rule
    def phase(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Phase] | None:
        if info.type is not Phase:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PHASE",
            instance_from_str=lambda words: schema.parse_phase(words[0]),
            is_instance=lambda value: isinstance(value, Phase),
            str_from_instance=lambda value: [schema.phase_text(value)],
        )

    @registry.primitive_rule
    def phases(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Phase, ...]] | None:
        if info.type != tuple[Phase, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[PHASE [PHASE ...]]",
            instance_from_str=lambda words: tuple(map(schema.parse_phase, words)),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(one, Phase) for one in value),
            str_from_instance=lambda value: list(map(schema.phase_text, value)),
        )

    @registry.primitive_rule
    def endpoints(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Endpoints] | None:
        if info.type != Endpoints:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="K,K,…|all",
            instance_from_str=lambda words: schema.parse_endpoints(words[0]),
            is_instance=lambda value: value == "all" or isinstance(value, tuple),
            str_from_instance=lambda value: [value if value == "all" else ",".join(map(str, value))],
        )

    @registry.primitive_rule
    def chunk(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Chunk] | None:
        if info.type != Chunk:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT|none|auto",
            instance_from_str=lambda words: schema.parse_chunk(words[0]),
            is_instance=lambda value: value is None or value == "auto" or isinstance(value, int),
            str_from_instance=lambda value: ["none" if value is None else str(value)],
        )

    @registry.primitive_rule
    def texts(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Text, ...]] | None:
        if info.type != tuple[Text, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="[TEXT [TEXT ...]]",
            instance_from_str=lambda words: tuple(map(Text, words)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=list,
        )

    @registry.primitive_rule
    def words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Any, ...]] | None:
        kinds: dict[Any, Any] = {tuple[str, ...]: str, tuple[int, ...]: int}
        if info.type not in kinds:
            return None
        kind = kinds[info.type]
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{kind.__name__.upper()},…",
            instance_from_str=lambda words: tuple(kind(word) for word in words[0].split(",")),
            is_instance=lambda value: isinstance(value, tuple) and all(isinstance(one, kind) for one in value),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    return registry
