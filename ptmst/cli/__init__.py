"""The command line: one sub-command per arrow of the flow. Only what a sub-command needs is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import tyro

from ptmst import presets, schema
from ptmst.cli.about import Doctor, Inspect, Presets
from ptmst.cli.exchange import Export, Import
from ptmst.cli.flags import STARTS_AGAIN, constructors
from ptmst.cli.pipeline import Data, DataCheck, Distill, Evaluate, Report, Subset, Teach
from ptmst.cli.studies import Ablate, Demo
from ptmst.errors import InputError
from ptmst.support import memory

COMMANDS: dict[str, type] = {
    "demo": Demo,
    "data": Data,
    "teach": Teach,
    "distill": Distill,
    "subset": Subset,
    "evaluate": Evaluate,
    "report": Report,
    "import": Import,
    "export": Export,
    "ablate": Ablate,
    "presets": Presets,
    "inspect": Inspect,
    "doctor": Doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted."""
    if argv is None:  # this process is ours
        memory.keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = parse(arguments)
        command.run()
    except (InputError, OSError) as error:
        print(f"ptmst: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch itself may not be loaded
            raise
        print(f"ptmst: {_short_of_memory(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = getattr(COMMANDS.get(arguments[0]), "stopped", STARTS_AGAIN)
        print(f"ptmst: stopped; {again}", file=sys.stderr)
        return 130
    return 0


def _short_of_memory(message: str) -> str:
    return (
        f"the device is out of memory ({message.splitlines()[0]}); distill: set --chunk, or a lower --batch-size; "
        "evaluate: lower --together; checkpoints stay"
    )


def parse(arguments: list[str]) -> Any:
    """The command of a command line. Exits with 0 for --help and with 2 for flags that cannot be used."""
    name = arguments[0] if arguments else "--help"
    if name not in COMMANDS:
        if name in ("-h", "--help", "--version"):
            print(f"ptmst {metadata.version('ptmst')}" if name == "--version" else overview())
            raise SystemExit(0)
        raise InputError(f"{name}: no such command{schema.nearest(name, list(COMMANDS))}")
    if arguments[:2] == ["data", "check"]:
        return tyro.cli(DataCheck, prog="ptmst data check", args=arguments[2:])
    with constructors():
        defaults = _defaults(name, arguments[1:])
        return tyro.cli(COMMANDS[name], prog=f"ptmst {name}", args=arguments[1:], default=defaults)


def _defaults(name: str, arguments: list[str]) -> Any:
    """The command's defaults, from its table of the preset and the TOML file that are named."""
    values: dict[str, Any] = {f.name: tyro.MISSING for f in fields(COMMANDS[name]) if _required(f)}
    preset, file = _value(arguments, "--preset"), _value(arguments, "--config")
    if (preset or file) and "preset" in (f.name for f in fields(COMMANDS[name])):
        values["settings"] = getattr(presets.experiment(preset, Path(file) if file else None), name)
    return COMMANDS[name](**values)


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _value(arguments: list[str], flag: str) -> str | None:
    for word, value in pairwise([*arguments, ""]):
        if word == flag and value:
            return value
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def overview() -> str:
    lines = [f"  {name:10} {(kind.__doc__ or '').strip()}" for name, kind in COMMANDS.items()]
    head = ["usage: ptmst COMMAND [FLAGS]", "", "Distil image-text pairs into a few hundred that train as well.", ""]
    return "\n".join([*head, *lines, "", "`ptmst COMMAND --help` explains every flag."])
