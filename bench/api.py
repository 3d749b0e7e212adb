"""docs/api.md: `python -m bench.api` writes it from the signatures and docstrings of the public names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "api.md"
SECTIONS = {
    "teachers": "The flow",
    "distillation": "The flow",
    "evaluation": "The flow",
    "retrieval": "The flow",
    "config": "Settings",
    "presets": "Settings",
    "data": "Data",
    "synthetic": "Synthetic pairs",
    "trajectories": "Trajectories",
    "recipe": "Trajectories",
    "students": "Students and losses",
    "engine": "The outer gradient",
    "exchange": "Exchange with other code",
    "support": "Messages and errors",
    "errors": "Messages and errors",
    "kernels": "Kernels",
}
"""Package, or file at the top → where its names are described; in the order of the page."""
EXTRA = (("ptmst.presets", "experiment"),)
"""Names outside `ptmst` itself that README uses."""
_WIDTH = 100
_HEAD = """# Python API

Every public name, from its signature and docstring; `python -m bench.api` writes this page, and a test compares it.

Letters in shapes: N synthetic pairs, B pairs of a batch, I images, T texts, D width of text embeddings, H width of the
shared embedding space, P parameters, L layers, G groups of layers, E epochs. [The method](method.md) has the symbols.
An `InputError` is a mistake of the caller; the command line prints its message and ends with exit code 2.
"""


@dataclass(frozen=True)
class Name:
    """A public name."""

    module: str
    """Where it is imported from: `ptmst`, `ptmst.kernels`, …."""
    name: str

    @cached_property
    def value(self) -> Any:
        return getattr(importlib.import_module(self.module), self.name)

    @property
    def shown(self) -> str:
        """As it is written after `import ptmst`."""
        return f"{self.module}.{self.name}".removeprefix("ptmst.")

    @property
    def section(self) -> str:
        home = str(getattr(self.value, "__module__", self.module)).split(".")
        return SECTIONS.get(home[1] if len(home) > 1 else home[0], "Other")

    @property
    def source(self) -> str:
        """The file that defines it, from the root of the repository."""
        file = inspect.getsourcefile(inspect.unwrap(self.value))
        assert file is not None
        path = Path(file).resolve()
        return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else f"{path.parent.name}/{path.name}"


def public() -> list[Name]:
    """All public names but the version, in the order of the page."""
    import ptmst
    from ptmst import kernels

    found = [Name("ptmst", name) for name in ptmst.__all__ if name != "__version__"]
    found += [Name(*extra) for extra in EXTRA]
    found += [Name("ptmst.kernels", name) for name in kernels.__all__]
    titles = [*dict.fromkeys(SECTIONS.values()), "Other"]
    return sorted(found, key=lambda name: (titles.index(name.section), name.shown.lower()))


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class of ours defines, with those of its bases of ours."""
    seen = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("ptmst"):
            continue
        for name, value in vars(base).items():
            described = isinstance(value, (property, cached_property, classmethod, staticmethod)) or callable(value)
            ours = not name.startswith("_") or name == "__call__"
            # Settings tell their mistakes by `problems`; whoever makes settings never calls it.
            if described and ours and name not in seen and name != "problems" and not isinstance(value, type):
                seen.add(name)
                yield name, value


def function(value: Any) -> Callable[..., Any]:
    """The function behind a method, a property or a class method."""
    for attribute in ("fget", "func", "__func__"):
        value = getattr(value, attribute, None) or value
    unwrapped: Callable[..., Any] = inspect.unwrap(value)
    return unwrapped


def described_fields(kind: type) -> Iterator[tuple[Field[Any], str]]:
    """The fields of a dataclass, each with the string below it."""
    if is_dataclass(kind):
        texts = {name: text for base in reversed(kind.__mro__) for name, text in field_texts(base).items()}
        yield from ((field, texts.get(field.name, "")) for field in fields(kind) if not field.name.startswith("_"))


@cache
def field_texts(kind: type) -> dict[str, str]:
    """Field → the string below it in the source of a class of ours."""
    if not kind.__module__.startswith("ptmst"):
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = inspect.cleandoc(text)
    return texts


def signature(name: str, value: Any) -> str:
    """The call, wrapped like code."""
    parameters, star = [], False
    signed = inspect.signature(value)
    for one in signed.parameters.values():
        if one.name in ("self", "cls"):
            continue
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        prefix = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        star = star or prefix == "*"
        text = prefix + one.name
        if one.annotation is not inspect.Parameter.empty:
            text += f": {_annotation(one.annotation)}"
        if one.default is not inspect.Parameter.empty:
            text += f" = {_value(one.default)}" if ":" in text else f"={_value(one.default)}"
        parameters.append(text)
    returns = (
        "" if signed.return_annotation is inspect.Signature.empty else f" -> {_annotation(signed.return_annotation)}"
    )
    line = f"{name}({', '.join(parameters)}){returns}"
    if len(line) <= _WIDTH:
        return line
    lines = "".join(f"    {one},\n" for one in parameters)
    return f"{name}(\n{lines}){returns}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _value(value: Any) -> str:
    if isinstance(value, Path):
        return f'"{value}"'
    if isinstance(value, str):
        return f'"{value}"'
    return "…" if "<" in repr(value) else repr(value)


def _default(field: Field[Any]) -> str:
    if field.default is not MISSING:
        return f"`{_value(field.default)}`"
    if field.default_factory is not MISSING:
        return f"`{getattr(field.default_factory, '__name__', '…')}()`"
    return ""


def _text(docstring: str | None) -> str:
    """A docstring as Markdown."""
    return re.sub(r"(?<![*\w`])\*(?=[\w ])", r"\\*", inspect.cleandoc(docstring or ""))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _entry(name: Name) -> Iterator[str]:
    value = name.value
    yield f"### {name.shown}\n"
    exception = isinstance(value, type) and issubclass(value, Exception)
    table = [(field, text) for field, text in described_fields(value)] if isinstance(value, type) else []
    if exception:
        yield f"```python\n{name.shown}({value.__bases__[0].__name__})\n```\n"
    elif not any(text for _, text in table) and not getattr(value, "_is_protocol", False):
        called = getattr(value, "__init__") if isinstance(value, type) else value  # noqa: B009
        yield f"```python\n{signature(name.shown, called).removesuffix(' -> None')}\n```\n"
    yield f"{_text(value.__doc__)}\n"
    if any(text for _, text in table):
        yield "| field | type | default | meaning |\n|---|---|---|---|"
        for field, text in table:
            yield f"| `{field.name}` | `{_cell(str(field.type))}` | {_cell(_default(field))} | {_cell(text)} |"
        yield ""
    if isinstance(value, type) and not exception:
        found = False
        for method, about in methods(value):
            found = True
            plain = isinstance(about, (property, cached_property))
            head = f"{method}: {_annotation(function(about).__annotations__.get('return', ''))}" if plain else ""
            head = head or signature(method, function(about))
            code = f"`{head}`" if "\n" not in head else f"\n  ```python\n{textwrap.indent(head, '  ')}\n  ```"
            yield f"* {code}\n\n{textwrap.indent(_text(function(about).__doc__), '  ')}\n"
        if not found and not table:
            yield ""
    yield f"Source: [{name.source}](../{name.source})\n"


def page() -> str:
    """The whole page."""
    import ptmst

    names, parts = public(), [_HEAD]
    for section in dict.fromkeys(name.section for name in names):
        mine = [name.shown for name in names if name.section == section]
        links = (f"[`{name}`](#{re.sub(r'[^A-Za-z0-9_]', '', name).lower()})" for name in mine)
        parts.append(f"**{section}**: {', '.join(links)}\n")
    assert ptmst.__version__
    parts.append("`ptmst.__version__` is the version, a string.\n")
    section = ""
    for name in names:
        if name.section != section:
            section = name.section
            parts.append(f"## {section}\n")
        parts += _entry(name)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    sys.exit(0)
