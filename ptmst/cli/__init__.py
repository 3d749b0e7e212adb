"""The command line: one sub-command per arrow of the flow. Only what a sub-command needs is imported."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import tyro

from ptmst import presets, schema
from ptmst.cli import surroundings
from ptmst.cli.about import Cache, Doctor, Inspect, Presets
from ptmst.cli.arguments import check
from ptmst.cli.exchange import Export, Import
from ptmst.cli.flags import STARTS_AGAIN, Command, WithPreset, constructors, split_off, value_of
from ptmst.cli.help import show_help
from ptmst.cli.pipeline import Data, DataCheck, Distill, Evaluate, Report, Subset, Teach
from ptmst.cli.retrieval import Query, Train
from ptmst.cli.studies import Ablate, Demo, Diagnose, Estimate, Run
from ptmst.errors import InputError
from ptmst.support import memory, progress, threads

COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "run": Run,
    "data": Data,
    "teach": Teach,
    "distill": Distill,
    "subset": Subset,
    "evaluate": Evaluate,
    "report": Report,
    "train": Train,
    "query": Query,
    "import": Import,
    "export": Export,
    "ablate": Ablate,
    "diagnose": Diagnose,
    "estimate": Estimate,
    "presets": Presets,
    "inspect": Inspect,
    "cache": Cache,
    "doctor": Doctor,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 2 for a mistake of the user, 130 when interrupted.

    141 where nobody reads any more what is printed.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # this process is ours
        memory.keep_freed_memory()
        threads.wait_asleep()
        surroundings.prepare(lambda: _stopped(arguments))
    try:
        try:
            return _run(arguments)
        finally:
            surroundings.flush()
    except BrokenPipeError:
        surroundings.silence()
        return surroundings.CLOSED_PIPE
    except OSError as error:  # what was printed cannot be written out
        print(f"ptmst: {error}", file=sys.stderr)
        surroundings.silence()
        return 2


def _run(arguments: list[str]) -> int:
    try:
        command = parse(arguments)
        with progress.switched_off(command.quiet), _remarks_on_stderr(command.quiet):
            _completed(command)
    except BrokenPipeError:
        raise
    except (InputError, OSError) as error:
        print(f"ptmst: {progress.printable(str(error))}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's; torch itself may not be loaded
            raise
        print(f"ptmst: {_out_of_memory(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(_stopped(arguments), file=sys.stderr)
        return 130
    return 0


def _completed(command: Command) -> None:
    try:
        command.run()
    except Exception:
        if surroundings.interrupted():
            raise KeyboardInterrupt from None
        raise


def _stopped(arguments: Sequence[str]) -> str:
    kind = COMMANDS.get(arguments[0]) if arguments else None
    return f"ptmst: stopped; {kind.stopped if kind else STARTS_AGAIN}"


def _out_of_memory(message: str) -> str:
    return (
        f"the device is out of memory ({message.splitlines()[0]}); distill: set --chunk, or a lower --batch-size; "
        "evaluate: lower --together; checkpoints are kept"
    )


class _Stderr(logging.Handler):
    """Plain lines on what is stderr at the time: a progress bar replaces it, to stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(progress.printable(self.format(record)), file=sys.stderr, flush=True)


@contextmanager
def _remarks_on_stderr(quiet: bool) -> Iterator[None]:
    """Show what the library remarks, or only its warnings."""
    logger, handler = logging.getLogger("ptmst"), _Stderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def parse(arguments: list[str]) -> Command:
    """The command of a command line. Exits with 0 for --help and with 2 for flags that cannot be used.

    Raises InputError for an unknown command or preset, mistakes in a TOML file, and two different inputs.
    """
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "--version"):
        print(f"ptmst {metadata.version('ptmst')}" if name == "--version" else overview())
        raise SystemExit(0)
    if name not in COMMANDS:
        raise InputError(f"{name}: no such command{schema.nearest(name, list(COMMANDS))}")
    kind, rest = COMMANDS[name], arguments[1:]
    if arguments[:2] == ["data", "check"]:
        name, kind, rest = "data check", DataCheck, arguments[2:]
    inputs, rest = split_off(f"--{kind.input}", rest) if kind.input else ([], rest)
    with constructors():
        default = kind(**_defaults(name, kind, rest, inputs))
        if {"-h", "--help"} & {*rest}:
            show_help(f"ptmst {name}", default)
            raise SystemExit(0)
        check(f"ptmst {name}", default, rest)
        command: Command = tyro.cli(kind, prog=f"ptmst {name}", args=rest, default=default)
    for given in inputs:
        if _path(kind.input, given) != (parsed := getattr(command, kind.input)):
            raise InputError(f"{kind.input}: expected one folder, found {parsed} and {given}; name one")
    return command


def _defaults(name: str, kind: type[Command], arguments: list[str], inputs: list[str]) -> dict[str, Any]:
    """The defaults of a command's arguments: its table of the preset and the TOML file, and input that has a flag."""
    values: dict[str, Any] = {f.name: tyro.MISSING for f in fields(kind) if _required(f)}
    preset, file = value_of("--preset", arguments), value_of("--config", arguments)
    if (preset or file) and issubclass(kind, WithPreset):
        settings = presets.experiment(preset, _path("--config", file) if file else None)
        values["settings"] = getattr(settings, name)
    if inputs:
        values[kind.input] = _path(kind.input, inputs[0])
    return values


def _path(name: str, text: str) -> Path:
    try:
        return schema.parse_path(text)
    except ValueError as error:
        raise InputError(f"{name}: {error}; name another") from None


def _required(f: Field[Any]) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def overview() -> str:
    lines = [f"  {name:10} {(kind.__doc__ or '').strip()}" for name, kind in COMMANDS.items()]
    head = ["usage: ptmst COMMAND [FLAGS]", "", "Distill image-text data sets into a few hundred synthetic pairs.", ""]
    return "\n".join([*head, *lines, "", "`ptmst COMMAND --help` explains every flag."])
