"""Tables in Markdown, and the sentence below each that says where its numbers come from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.result import Result

NOT_YET = "Not measured yet."
Cells = Sequence[str | None]


@dataclass
class Table:
    """A table whose numbers are aligned right."""

    head: Cells
    rows: list[Cells] = field(default_factory=list)
    """Of texts; None where a row has no such entry."""
    left: Collection[int] = (0,)
    """Columns of words, which are aligned left."""

    def add(self, *cells: str | None) -> None:
        self.rows.append(cells)

    def markdown(self, *below: str) -> str:
        """The table; `below` are paragraphs under it. Raises ValueError for a row that is not as long as the head."""
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"expected {len(self.head)} cells, as the head has, found {list(row)}")
        rule = ["---" if column in self.left else "--:" for column in range(len(self.head))]
        lines = [_line(self.head), f"|{'|'.join(rule)}|", *map(_line, self.rows)]
        return "\n".join([*lines, *(line for text in below for line in ("", text))])


def _line(cells: Cells) -> str:
    return f"|{'|'.join(' ' if cell is None else f' {cell} ' for cell in cells)}|"


def bold(text: str, whether: bool = True) -> str:
    return f"**{text}**" if whether else text


def cores(machine: Mapping[str, Any]) -> str:
    """What of a machine was used."""
    if machine["threads"] < machine["cores"]:
        return f"{machine['threads']} of {machine['cores']} cores"
    return f"{machine['cores']} cores"


def source(result: Result, *, ran: str | None = None, more: str = "", raw: str | None = None) -> str:
    """Where numbers come from: command, machine, threads, torch and the file.

    `ran` replaces the number of threads and the GPU, `more` follows torch's version, `raw` links to the file.
    """
    machine, torch = result["machine"], result["versions"].get("torch")
    if ran is None:
        ran = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}, GPU: {machine['gpu']}"
    details = [f"`{result['command']}` on {machine['cpu']}" + (f", {ran}" if ran else "")]
    details += [f"torch {torch}"] if torch else []
    details += [more] if more else []
    return "; ".join(details) + (f" ([raw]({raw}))" if raw else "") + "."
