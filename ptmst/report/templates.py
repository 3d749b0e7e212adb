"""Templates of pages, and how they are filled: one look for all."""

from __future__ import annotations

import base64
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from ptmst.support import files, progress


def text(name: str) -> str:
    """A file beside this one."""
    return resources.files("ptmst.report").joinpath(name).read_text("utf-8")


def picture_address(picture: Image.Image, most: int | None = None, *, lossless: bool = False) -> str:
    """A picture as a data address, made smaller where a side has more than `most` pixels."""
    buffer = BytesIO()
    if most is not None:
        picture = picture.copy()
        picture.thumbnail((most, most))
    picture.save(buffer, "WEBP", quality=90, use_sharp_yuv=True, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
