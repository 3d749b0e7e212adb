"""Settings are checked, read from JSON, TOML and flags, and written; and the nearest known name is found."""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ptmst.config import Chunk, Endpoints, OpenPhases, Phase
from ptmst.errors import InputError, said_of

if TYPE_CHECKING:
    from cattrs import Converter


T = TypeVar("T")


def check(config: object) -> None:
    """Raise one InputError that lists every mistake of a config and of the configs inside it."""
    problems = list(_walk(config, ""))
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError("\n  ".join([f"{len(problems)} settings cannot be used:", *problems]))


def _walk(config: object, prefix: str) -> Iterator[str]:
    problems = list(getattr(config, "problems", tuple)())
    yield from (prefix + line for line in problems)
    kinds = get_type_hints(type(config))
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if _is_literal(kinds[f.name]) and value not in get_args(kinds[f.name]):
            yield f"{prefix}{f.name}: {_no_choice(value, kinds[f.name])}"
        reported = any(line.startswith(f"{f.name}:") for line in problems)
        if isinstance(value, float) and not math.isfinite(value) and not reported:
            yield f"{prefix}{f.name}: expected a finite number, found {value}; lower it"
        if dataclasses.is_dataclass(value):
            yield from _walk(value, f"{prefix}{f.name}.")


def to_json(config: object) -> dict[str, Any]:
    """A config as plain JSON values."""
    value: dict[str, Any] = _converter().unstructure(config)
    return value


def from_json(kind: type[T], value: object) -> T:
    """A config of `kind` from plain values; missing keys take their defaults.

    Raises InputError that lists every unknown setting, with the nearest known one, and every value of a wrong type.
    """
    from cattrs import BaseValidationError, transform_error

    if not isinstance(value, Mapping):
        raise InputError(f"expected a table of settings, found {value!r}")
    try:
        return _converter().structure(value, kind)
    except BaseValidationError as error:
        problems = transform_error(error, format_exception=_explain)
        lines = problems if len(problems) == 1 else ["settings:", *problems]
        raise InputError("\n  ".join(lines)) from None


def decisive(config: object) -> dict[str, Any]:
    """The settings that decide a result, as JSON values: all but those for where files are and where it runs.

    A field of a config says so itself, by `metadata={"decides": False}`; configs inside a config are filtered alike.
    """
    values = to_json(config)
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if not f.metadata.get("decides", True):
            del values[f.name]
        elif dataclasses.is_dataclass(value):
            values[f.name] = decisive(value)
    return values


def agrees(recorded: object, config: object) -> bool:
    """Whether settings that were recorded, by this release or an earlier one, decide the same result as `config`.

    A setting that is missing takes its default, so that a new one does not orphan old files. Raises InputError for a
    setting that this release does not know.
    """
    return decisive(from_json(type(config), recorded)) == decisive(config)


def from_toml(kind: type[T], path: Path, defaults: Mapping[str, Any] | None = None) -> T:
    """A config of `kind` from a TOML file, which overrides `defaults`, table by table.

    Raises InputError that names the file and every mistake in it.
    """
    try:
        value = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected TOML in UTF-8, found another encoding; save it as UTF-8") from error
    except RecursionError as error:
        raise InputError(f"{path}: expected TOML, found brackets too deep to read; fix them") from error
    except ValueError as error:
        raise InputError(f"{path}: expected TOML, found a mistake ({error}); fix that line") from error
    with said_of(path):
        return from_json(kind, merged(defaults or {}, value))


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables, with `changes` written over them."""
    result = dict(values)
    for key, value in changes.items():
        inside = result.get(key)
        result[key] = merged(inside, value) if isinstance(inside, Mapping) and isinstance(value, Mapping) else value
    return result


def parse_path(text: str) -> Path:
    """A path, in which ~ is the home folder, as a shell would read it."""
    if "\0" in text:
        raise ValueError(f"expected a path, found one with a NUL in it, {text!r}")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"expected a path, found {text}, whose user has no home folder here") from None


def parse_phase(text: str) -> Phase:
    """`PAIRS:ENDPOINT:FIRST-LAST`, such as 200:5:0-2; or `auto:PAIRS` or `search:PAIRS`."""
    try:
        by, _, rest = text.partition(":")
        if by in ("auto", "search"):
            return OpenPhases(int(rest), by="auto" if by == "auto" else "search")
        pairs, endpoint, start = text.split(":")
        first, last = start.split("-")
        return Phase(int(pairs), int(endpoint), (int(first), int(last)))
    except ValueError:
        raise ValueError(
            f"expected PAIRS:ENDPOINT:FIRST-LAST, such as 200:5:0-2, auto:PAIRS or search:PAIRS, found {text}"
        ) from None


def phase_text(phase: Phase) -> str:
    """As `parse_phase` reads it."""
    if isinstance(phase, OpenPhases):
        return f"{phase.by}:{phase.pairs}"
    return f"{phase.pairs}:{phase.endpoint}:{phase.start[0]}-{phase.start[1]}"


def parse_chunk(text: str) -> Chunk:
    """A number of images, `none` or `auto`."""
    if text == "none":
        return None
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"expected a number of images, none or auto, found {text}") from None


def parse_endpoints(text: str) -> Endpoints:
    """`5,7`, or `all`."""
    if text == "all":
        return "all"
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected epochs such as 5,7, or all, found {text}") from None


@cache
def _converter() -> Converter:
    from cattrs import Converter

    converter = Converter(forbid_extra_keys=True, unstruct_collection_overrides={tuple: list})
    for kind, accepted in ((bool, (bool,)), (int, (int,)), (float, (int, float)), (str, (str,))):
        converter.register_structure_hook(kind, _strict(kind, accepted))
    converter.register_structure_hook(Path, lambda value, _: parse_path(_strict(str, (str,))(value, str)))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(_is_literal, _one_of)
    converter.register_structure_hook_func(lambda t: t == Endpoints, _endpoints)
    converter.register_structure_hook_func(lambda t: t == Chunk, _chunk)
    converter.register_structure_hook_func(lambda t: t == tuple[Phase, ...], partial(_phases, converter))
    converter.register_structure_hook_func(
        lambda t: without_none(t) is not None, lambda v, t: _optional(converter, v, t)
    )
    converter.register_unstructure_hook_func(lambda t: t == Chunk, lambda v: v)
    converter.register_unstructure_hook_func(lambda t: t == tuple[Phase, ...], partial(_of_phases, converter))
    converter.register_unstructure_hook_func(lambda t: t == Endpoints, lambda v: v if v == "all" else list(v))
    return converter


def _strict(kind: type, accepted: tuple[type, ...]) -> Any:
    def structure(value: object, _: object) -> object:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"expected {kind.__name__}, found {value!r}")
        return kind(value)

    return structure


def _is_literal(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is Literal


def without_none(kind: Any) -> Any:
    """T for a type `T | None`; None for any other."""
    if get_origin(kind) not in (Union, UnionType) or len(get_args(kind)) != 2 or type(None) not in get_args(kind):
        return None
    (inner,) = (one for one in get_args(kind) if one is not type(None))
    return inner


def _optional(converter: Converter, value: object, kind: Any) -> object:
    """None is written `none`, on the command line as well as in TOML, which has no null."""
    if value == "None":
        raise ValueError("expected none in lower case, found 'None'")
    return None if value is None or value == "none" else converter.structure(value, without_none(kind))


def _one_of(value: object, kind: object) -> object:
    if value not in get_args(kind):
        raise ValueError(_no_choice(value, kind))
    return value


def _no_choice(value: object, kind: object) -> str:
    choices = [str(choice) for choice in get_args(kind)]
    return f"expected {', '.join(choices)}, found {value!r}{nearest(str(value), choices, 'choose one of them')}"


def _chunk(value: object, _: object) -> Chunk:
    if isinstance(value, str):
        return parse_chunk(value)
    if value is None or type(value) is int:
        return value
    raise TypeError(f"expected a number of images, none or auto, found {value!r}")


def _phases(converter: Converter, value: object, _: object) -> tuple[Phase, ...]:
    """Tables, or a text for phases that are chosen later."""
    if isinstance(value, str):
        return tuple(map(parse_phase, value.split()))
    found: list[Phase] = converter.structure(value, list[Phase])
    return tuple(found)


def _of_phases(converter: Converter, phases: Sequence[Phase]) -> object:
    if any(isinstance(phase, OpenPhases) for phase in phases):
        return " ".join(map(phase_text, phases))
    return [converter.unstructure(phase) for phase in phases]


def _endpoints(value: object, _: object) -> Endpoints:
    if isinstance(value, str):
        return parse_endpoints(value)
    if isinstance(value, (list, tuple)) and all(type(k) is int for k in value):
        return tuple(value)
    raise TypeError(f"expected a list of epochs or 'all', found {value!r}")


def _explain(error: BaseException, kind: Any) -> str:
    from cattrs.errors import ForbiddenExtraKeysError

    if isinstance(error, ForbiddenExtraKeysError):
        known = [f.name for f in dataclasses.fields(error.cl)]
        return "; ".join(f"unknown setting {name}{nearest(name, known)}" for name in sorted(error.extra_fields))
    if isinstance(error, KeyError):
        return f"expected the key {error}, found none; add it"
    if get_origin(kind) is tuple and isinstance(error, TypeError):
        return "expected a list, found something else"
    if dataclasses.is_dataclass(kind):
        return "expected a table of settings, found something else"
    return str(error) or f"expected {kind}"


def nearest(name: str, known: Sequence[str], otherwise: str = "") -> str:
    """Advice to end an error message with: the closest known names; where there is none, `otherwise` or all of them."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; {otherwise or 'known: ' + ', '.join(known)}"
