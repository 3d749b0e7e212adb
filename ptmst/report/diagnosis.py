"""One HTML page about a diagnosis: three sentences, and the figures and tables behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch

from ptmst.diagnosis.diagnose import Diagnosis
from ptmst.diagnosis.signals import LEAVES
from ptmst.evaluation.scorer import CHOOSING
from ptmst.report.figures import COLORS, figure, svg
from ptmst.report.templates import write_page

_STYLES = {"raw": "--", "shortcut": "-"}


def write_diagnosis_page(out: Path, title: str, diagnosis: Diagnosis, command: str | None = None) -> None:
    """Write one self-contained HTML page. Raises InputError where `out` cannot be written."""
    write_page(
        out,
        "diagnosis.html.jinja",
        title,
        command,
        sentences=diagnosis.findings.sentences,
        experts=len(diagnosis.shapes),
        split=CHOOSING,
        endpoint=diagnosis.endpoint,
        ceilings=_ceilings(diagnosis),
        shapes=_shapes(diagnosis),
        shared=_shared(diagnosis),
        crooked=_crooked(diagnosis),
        signals=_signals(diagnosis),
        signal_rows=_signal_rows(diagnosis),
        reached=_reached(diagnosis),
        groups=diagnosis.groups,
    )


def _ceilings(diagnosis: Diagnosis) -> str:
    """Recall and loss at every kept epoch, and along the lines."""
    drawn, every = figure(9, 3.2), list(diagnosis.ceilings.values())
    for axes, what in zip(drawn.subplots(1, 2), ("recall", "loss"), strict=True):
        epochs = list(every[0].epochs)
        axes.plot(epochs, [mean(getattr(one.epochs[t], what) for one in every) for t in epochs], color="#222222", lw=2)
        for number, (endpoint, line) in enumerate(every[0].lines.items()):
            values = [mean(getattr(one.lines[endpoint][t], what) for one in every) for t in line]
            color = COLORS[number % len(COLORS)]
            axes.plot(list(line), values, color=color, lw=1.2, marker=".", label=f"line to {endpoint}")
        axes.set(
            xlabel="epoch", ylabel=f"mean recall on {CHOOSING}, percent" if what == "recall" else "contrastive loss"
        )
    if every[0].lines:
        drawn.axes[0].legend(frameon=False, fontsize=8)
    return svg(drawn)


def _shapes(diagnosis: Diagnosis) -> str:
    """Length of steps, straightness, and turns, by group; means over experts."""
    drawn, shapes = figure(9, 3.0), list(diagnosis.shapes.values())
    first = shapes[0]
    steps = torch.stack([one.step_norms for one in shapes]).mean(0)
    straight = torch.stack([one.straightness for one in shapes]).mean(0)
    turns = torch.stack([one.turns for one in shapes]).mean(0)
    lengths, straightness, cosines = drawn.subplots(1, 3)
    for number, group in enumerate(diagnosis.groups):
        color = COLORS[number % len(COLORS)]
        lengths.plot(range(1, len(steps) + 1), steps[:, number].tolist(), color=color, marker=".", label=group)
        straightness.plot(list(first.endpoints), straight[:, number].tolist(), color=color, marker=".", label=group)
        cosines.plot(list(first.turns_at), turns[:, number].tolist(), color=color, marker=".", label=group)
    lengths.set(xlabel="epoch", ylabel="length of its step")
    straightness.set(xlabel="end point K", ylabel="‖θᴷ − θ⁰‖ over the path", ylim=(0, 1.02))
    cosines.set(xlabel="epoch", ylabel="cosine of the steps around it", ylim=(-1.02, 1.02))
    lengths.legend(frameon=False, fontsize=8)
    return svg(drawn)


def _shared(diagnosis: Diagnosis) -> list[tuple[str, str, str]]:
    found = diagnosis.shared
    rows = zip(diagnosis.groups, found.cosine.tolist(), found.leading.tolist(), strict=True)
    return [(group, f"{cosine:.2f}", f"{leading:.2f}") for group, cosine, leading in rows]


def _crooked(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The least straight layers, means over experts."""
    layers = torch.stack([one.straightness_of_layers for one in diagnosis.shapes.values()]).mean(0)
    worst = layers.argsort()[:8].tolist()
    return [(diagnosis.layers[layer], f"{layers[layer]:.2f}") for layer in worst]


def _signals(diagnosis: Diagnosis) -> str:
    """What gradients from each start point agree on, along raw epochs and along the shortcut."""
    drawn = figure(9, 5.2)
    agreement = {"neighbors": "with the start point before", "batches": "between batches", "experts": "between experts"}
    axes = drawn.subplots(2, 2).flatten()
    for one, (field, name) in zip(axes, [*agreement.items(), ("snr", "signal-to-noise ratio")], strict=True):
        for kind, by_start in diagnosis.signals.items():
            for number, leaf in enumerate(LEAVES):
                values = {start: getattr(by_leaf[leaf], field) for start, by_leaf in by_start.items()}
                known = {start: value for start, value in values.items() if value is not None}
                style = {"color": COLORS[number], "linestyle": _STYLES[kind]}
                one.plot(list(known), list(known.values()), marker=".", label=f"{leaf}, {kind}", **style)
        one.set_title(name, fontsize=10)
        one.set(xlabel="start point, epoch")
        one.set(yscale="log") if field == "snr" else one.set(ylabel="cosine", ylim=(-1.02, 1.02))
    axes[0].legend(frameon=False, fontsize=8)
    return svg(drawn)


def _signal_rows(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    """A line for each trajectory and leaf: means over start points."""
    rows = []
    for kind, by_start in diagnosis.signals.items():
        for leaf in LEAVES:
            of_leaf = [by_leaf[leaf] for by_leaf in by_start.values()]
            near = [one.neighbors for one in of_leaf if one.neighbors is not None]
            values: Mapping[str, Sequence[float]] = {
                "neighbors": near,
                "batches": [one.batches for one in of_leaf],
                "experts": [one.experts for one in of_leaf],
            }
            rows.append((kind, leaf, *(f"{mean(value):.2f}" if value else "" for value in values.values())))
    return rows


def _reached(diagnosis: Diagnosis) -> list[tuple[str, ...]]:
    """A line for each phase of the set."""

    def by_group(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.2f}" for value in values)

    rows: list[tuple[str, ...]] = []
    for one in diagnosis.reached:
        gap = one.gap
        at = "" if gap is None else f"epoch {gap.start}"
        away, ahead = ("", "") if gap is None else (by_group(gap.distance), f"{gap.recall:+.1f}")
        rows.append(
            (str(one.phase), f"{one.point.recall:.1f}", by_group(one.along), by_group(one.off), at, away, ahead)
        )
    return rows
