"""The figure of docs/method.md: `python -m bench.method_figure` computes and draws docs/method/shortcut.png.

One layer of two parameters, so the plane of the picture is the layer's parameter space. Expert and student train on
toy quadratics. The shortcut, the span and the matching loss are the engine's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import LayerTable, TrajectoryMatchingLoss
from ptmst.trajectories.shortcut import Displacement, Expert, Shortcut

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "method" / "shortcut.png"

EPOCHS, ENDPOINT = 7, 5
START, AHEAD = 1, 1
"""The span: s and Δ, epochs."""
INNER_STEPS = 8

_BATCHES = 14
"""Batches per epoch of the expert."""
_STRIDES = (5, 3, 11, 9, 5, 3, 11, 9)
"""How each epoch shuffles its batches: a stride through them, coprime to their number."""
_EXPERT_RATE, _STUDENT_RATE, _OUTER_RATE = 0.06, 0.5, 0.25
_OUTER_STEPS = 14

_INK, _QUIET, _PALE, _BEAM = "#222222", "#70757A", "#C9CDD2", "#F3F5F8"
_EXPERT, _SHORTCUT, _STUDENT, _RESIDUAL = "#2F6DB5", "#D1590A", "#16825D", "#A3286B"
_STYLE: Any = {"font.family": "DejaVu Sans", "font.size": 9.5, "mathtext.fontset": "dejavusans", "text.color": _INK}


@dataclass(frozen=True)
class Geometry:
    """Everything that is drawn; points are [·, 2]."""

    walk: Tensor
    """The expert after every batch."""
    epochs: Tensor
    """θ⁰ … θᴱ."""
    shortcut: Shortcut
    knots: Tensor
    """θ(0) … θ(K)."""
    before: Tensor
    """The student's path θ_0 … θ_n on the initial pairs."""
    after: Tensor
    """The same on the distilled pairs."""
    loss_before: float
    loss_after: float


def geometry() -> Geometry:
    """Train the expert, record it as the engine does, and distill two synthetic points for the span."""
    layers = LayerTable(("layer",), ((2,),), (0,), ("student",))
    walk = _expert()
    epochs = walk[::_BATCHES]
    norms = torch.stack([layers.layer_norms(step) for step in epochs.diff(dim=0)])
    delta = Displacement.encode(epochs[ENDPOINT] - epochs[0], layers)
    shortcut = Expert(layers, epochs[0], {ENDPOINT: delta}, norms).shortcut(ENDPOINT)
    knots = torch.stack([shortcut.point(t) for t in range(ENDPOINT + 1)])

    span, matching = shortcut.span(START, START + AHEAD), TrajectoryMatchingLoss(layers)
    pairs = span.start + torch.tensor([[-1.27, 1.36], [0.01, 2.24]])
    before = _inner_loop(span.start, pairs)
    for _ in range(_OUTER_STEPS):
        leaf = pairs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(matching(_inner_loop(span.start, leaf)[-1], span).loss, leaf)
        pairs = pairs - _OUTER_RATE * gradient
    after = _inner_loop(span.start, pairs)
    losses = (matching(path[-1], span).loss.item() for path in (before, after))
    return Geometry(walk, epochs, shortcut, knots, before, after, *losses)


def _expert() -> Tensor:
    """SGD on quadratics of one curvature, whose minima lie on a circle, one for each batch."""
    curvature = _curvature(0.14, 0.85, degrees=-22)
    theta, walk = torch.tensor([-6.0, -3.0]), []
    for step in range(EPOCHS * _BATCHES + 1):
        walk.append(theta)
        batch = _STRIDES[step // _BATCHES] * step % _BATCHES
        angle = torch.tensor(2 * torch.pi * batch / _BATCHES)
        minimum = torch.tensor([5.0, 0.3]) + 2.4 * torch.stack([angle.cos(), angle.sin()])
        theta = theta - _EXPERT_RATE * curvature @ (theta - minimum)
    return torch.stack(walk)


def _inner_loop(start: Tensor, pairs: Tensor) -> Tensor:
    """θ_0 … θ_n: SGD on the two points in turn, each the minimum of a quadratic of its own curvature."""
    curvatures = _curvature(0.6, 0.15, degrees=110), _curvature(0.5, 0.15, degrees=10)
    path = [start]
    for i in range(INNER_STEPS):
        number = i % len(pairs)
        path.append(path[-1] - _STUDENT_RATE * curvatures[number] @ (path[-1] - pairs[number]))
    return torch.stack(path)


def _curvature(first: float, second: float, degrees: float) -> Tensor:
    """[2, 2] with these eigenvalues, the first one's axis at an angle."""
    angle = torch.deg2rad(torch.tensor(degrees))
    axes = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    return axes @ torch.diag(torch.tensor([first, second])) @ axes.T


def draw(path: Path) -> None:
    """Compute the geometry and write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = geometry()
    with matplotlib.rc_context(_STYLE):
        figure = pyplot.figure(figsize=(8, 3.9))
        left = figure.add_axes((0.01, 0.02, 0.57, 0.87))
        right = figure.add_axes((0.62, 0.03, 0.37, 0.85))
        _trajectory(left, found)
        _outer_step(right, found)
        _beam(left, right)
        figure.text(0.012, 0.945, "An expert and its shortcut", weight="bold", size=11)
        figure.text(0.62, 0.945, "One outer step on the span", weight="bold", size=11)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, metadata={"Software": None})
        pyplot.close(figure)


def _trajectory(panel: Any, found: Geometry) -> None:
    """The expert epoch by epoch, and the shortcut to its end point with β at the knots."""
    walk, epochs, knots = (points.numpy() for points in (found.walk, found.epochs, found.knots))
    end = ENDPOINT * _BATCHES
    label = _labels(panel)
    panel.plot(*walk[end:].T, color=_EXPERT, lw=0.9, alpha=0.3)
    panel.plot(*walk[: end + 1].T, color=_EXPERT, lw=1.1, alpha=0.75)
    panel.plot(*epochs[ENDPOINT + 1 :].T, "o", ms=4.5, color=_EXPERT, alpha=0.35, mew=0)
    for point, knot in zip(epochs[1:ENDPOINT], knots[1:ENDPOINT], strict=True):
        panel.plot(*zip(point, knot, strict=True), color=_PALE, lw=1.0, ls=(0, (2, 2)), zorder=1)
    panel.plot(*knots.T, color=_SHORTCUT, lw=1.6)
    panel.plot(*knots[START : START + AHEAD + 1].T, color=_SHORTCUT, lw=8, alpha=0.3, solid_capstyle="round")
    panel.plot(*knots[1:ENDPOINT].T, "o", ms=5.5, mfc="white", mec=_SHORTCUT, mew=1.6)
    panel.plot(*epochs[1:ENDPOINT].T, "o", ms=5.5, color=_EXPERT)
    panel.plot(*epochs[[0, ENDPOINT]].T, "o", ms=8, color=_INK)
    label(r"$\theta^0$", epochs[0], (12, -6), size=13)
    label(r"$\theta^K$", epochs[ENDPOINT], (0, 12), size=13, ha="center")
    for t in range(1, ENDPOINT):
        label(f"{t}", epochs[t], (-4, 8), color=_EXPERT, ha="center")
        label(rf"$\beta({t})={found.shortcut.beta[t, 0]:.2f}$", knots[t], (7, -12), color=_SHORTCUT)
    for t in range(ENDPOINT + 1, EPOCHS + 1):
        label(f"{t}", epochs[t], (0, 11), color=_EXPERT, alpha=0.55, ha="center")
    panel.text(
        0.0,
        0.985,
        "expert: SGD on real pairs,\none dot per epoch",
        color=_EXPERT,
        va="top",
        transform=panel.transAxes,
        linespacing=1.4,
    )
    panel.text(
        0.33,
        0.03,
        "shortcut: $\\theta(t)=\\theta^0+\\beta(t)\\,(\\theta^K-\\theta^0)$\n"
        r"$\beta(t)$: share of the path walked by epoch $t$",
        color=_SHORTCUT,
        transform=panel.transAxes,
        linespacing=1.5,
    )
    panel.set_aspect("equal")
    panel.axis("off")


def _outer_step(panel: Any, found: Geometry) -> None:
    """The span, the student's path from its start, and the residual that the loss measures."""
    knots, before, after = (points.numpy() for points in (found.knots, found.before, found.after))
    start, target = knots[START], knots[START + AHEAD]
    label = _labels(panel)
    panel.plot(*knots.T, color=_SHORTCUT, lw=1.2, alpha=0.5)
    panel.plot(*zip(start, target, strict=True), color=_SHORTCUT, lw=11, alpha=0.2, solid_capstyle="round")
    panel.plot(*before.T, "o-", ms=3.4, lw=1.1, color=_QUIET, alpha=0.6)
    panel.plot(*zip(after[-1], target, strict=True), color=_RESIDUAL, lw=2, ls=(0, (2.4, 1.6)))
    panel.plot(*after.T, "o-", ms=4.2, lw=1.4, color=_STUDENT)
    panel.plot(*zip(start, target, strict=True), "o", ms=8, mfc="white", mec=_SHORTCUT, mew=2, ls="none")
    middle, half = (start + target) / 2, 0.97 * (target - start).max()
    panel.set_xlim(middle[0] - half, middle[0] + half)
    panel.set_ylim(middle[1] - half - 0.12, middle[1] + half - 0.12)
    panel.set(xticks=[], yticks=[], facecolor=_BEAM)
    for spine in panel.spines.values():
        spine.set_visible(False)
    label(r"$\theta(s)$", start, (-2, -19), color=_SHORTCUT, size=12)
    label(r"$\theta(s+\Delta)$", target, (2, -19), color=_SHORTCUT, size=12)
    label(r"$\theta_n$", after[-1], (-3, 8), color=_STUDENT, size=12, ha="center")
    label("span", (start + target) / 2, (10, -12), color=_SHORTCUT)
    label("residual", (after[-1] + target) / 2, (2, 7), color=_RESIDUAL, ha="center")
    lines = (
        (rf"student, $n={INNER_STEPS}$ inner steps", _INK),
        (f"on the initial pairs: $L={found.loss_before:.2f}$", _QUIET),
        (f"on distilled pairs: $L={found.loss_after:.2f}$", _STUDENT),
        (r"$L=\Vert$residual$\Vert^2\,/\;\Vert$span$\Vert^2$", _INK),
    )
    for number, (text, color) in enumerate(lines):
        panel.text(0.975, 0.225 - 0.064 * number, text, color=color, ha="right", transform=panel.transAxes)


def _labels(panel: Any) -> Any:
    def label(text: str, point: Any, by: tuple[float, float], **more: Any) -> None:
        panel.annotate(text, point, by, textcoords="offset points", **more)

    return label


def _beam(left: Any, right: Any) -> None:
    """A pale beam from what the right panel shows, where it lies in the left one, to the right panel."""
    from matplotlib.patches import Polygon

    figure = left.figure
    (west, east), (south, north) = right.get_xlim(), right.get_ylim()
    figure.canvas.draw()  # settles the left panel's limits
    to_figure = left.transData + figure.transFigure.inverted()
    window = to_figure.transform([(west, south), (west, north), (east, north), (east, south)])
    box = right.get_position()
    corners = [window[0], window[1], window[2], (box.x0, box.y1), (box.x0, box.y0), window[3]]
    figure.patches.append(Polygon(corners, closed=True, fc=_BEAM, ec="none", transform=figure.transFigure, zorder=-1))


if __name__ == "__main__":
    draw(PICTURE)
    print(PICTURE.relative_to(ROOT))
