"""Flags that several commands share, and how their values are written."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ptmst import schema
from ptmst.config import (
    Chunk,
    Endpoints,
    Phase,
)

Source = Annotated[Path | None, arg(metavar="FILE")]
PresetName = Annotated[str | None, arg(metavar="NAME[,NAME]")]
CONTINUES, STARTS_AGAIN = "the same command continues", "the same command begins anew"
"""After Ctrl-C; a command says which, as `stopped`."""


def typed() -> str:
    """The command line, as it is shown beside what it made."""
    return shlex.join(["ptmst", *sys.argv[1:]])


def constructors() -> ConstructorRegistry:
    """How phases, end points and chunks are written on a command line."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def phase(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Phase] | None:
        if info.type is not Phase:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PAIRS:ENDPOINT:FIRST-LAST",
            instance_from_str=lambda words: schema.parse_phase(words[0]),
            is_instance=lambda value: isinstance(value, Phase),
            str_from_instance=lambda p: [f"{p.pairs}:{p.endpoint}:{p.start[0]}-{p.start[1]}"],
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
