"""Templates of pages, and how they are filled: one look for all."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from ptmst.support import files, progress


def text(name: str) -> str:
    """A file beside this one."""
    return resources.files("ptmst.report").joinpath(name).read_text("utf-8")


def write_page(out: Path, template: str, title: str, command: str | None, **values: Any) -> None:
    """Fill a template and write it as one self-contained page. Raises InputError where `out` cannot be written."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(text(template)).render(
        title=progress.printable(title),
        style=text("style.css"),
        command=command and progress.printable(command),
        **values,
    )
    files.write(out, page.encode("utf-8", "backslashreplace"))
