"""Figures of pages: one look for all, as SVG that is the same for the same numbers."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#4477aa", "#cc6677", "#228833", "#aa3377", "#ccbb44")


def figure(width: float, height: float) -> Figure:
    """An empty one, of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg(drawn: Figure) -> str:
    """As an element of a page, with its texts as text."""
    from matplotlib import rc_context

    for axes in drawn.axes:
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    # A fixed salt and no date: the same run gives the same page.
    with (
        rc_context({"svg.fonttype": "none", "svg.hashsalt": "ptmst", "font.family": "sans-serif"}),
        warnings.catch_warnings(),
    ):
        # Names are written as text, in the reader's fonts: that ours lack a letter does not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        drawn.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
