"""The inner loop and its gradient, truncated to exact, without double backward (docs/method.md §4)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Self

import torch
from torch import Tensor

from ptmst.config import Compile, DistillConfig, Keep, LossKind, Precision, gradient_problems
from ptmst.engine.compilation import compiler
from ptmst.engine.cuda_graph import Captured
from ptmst.engine.derivatives import Along, Batch, Step, derivatives
from ptmst.engine.frozen_tower import Features, drawn
from ptmst.engine.recursion import OuterGradient, blended
from ptmst.errors import InputError
from ptmst.students.student import Student
from ptmst.support.devices import arithmetic
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import LowRankSimilarity
from ptmst.trajectories.spans import RawSpan, Span


def outer_gradient(
    student: Student,
    theta_start: Tensor,
    theta_target: Tensor,
    pairs: SyntheticPairs,
    batches: Tensor,
    *,
    loss: LossKind = "wbce",
    temperature: float = 0.07,
    adjoint: float = 0.0,
    adjoint_clip: float | None = None,
    mixing: Tensor | None = None,
) -> OuterGradient:
    """Train from θ_start [P] on `batches` (int64 [n, B]) of the pairs, match θ_target [P], differentiate.

    `adjoint` is the share c of the adjoint recursion λ ← λ + c ∂/∂θ⟨−η⊙λ, g_i⟩ that is kept: 0 is the truncated
    gradient of the paper, 1 the exact one. `adjoint_clip` bounds ‖λ‖ by that multiple of ‖λ_n‖ in each group.
    `mixing` [n, B, B] blends each batch: its images (behind a frozen tower their features) and texts become that
    matrix times them, S stays (RepBlend).
    Memory holds the n parameter vectors of the inner loop, and the activations of one step. For many steps of one
    student make an `OuterStep` once, which can compile.

    Raises InputError for an unknown loss, and where a group's span from θ_start to θ_target has length 0.
    """
    step = OuterStep(student, loss=loss, temperature=temperature, adjoint=adjoint, adjoint_clip=adjoint_clip)
    return step(RawSpan.between(theta_start, theta_target, student.layers), pairs, batches, mixing)


class OuterStep:
    """The outer gradient of one student, to be called at every outer step: `step(span, pairs, batches)`.

    `loss` … `adjoint_clip` say what is computed, as in `outer_gradient`; the others only how, as in `DistillConfig`.
    The student stays on the device where it is; span, pairs and batches must be there too. Where the step is compiled
    on CUDA it is one CUDA graph: the tensors that it returns are overwritten by its next call.

    Raises InputError for an unknown loss, for settings that do not go together (as `DistillConfig` has them), for tf32
    without CUDA, and for `compile="on"` without a compiler.
    """

    def __init__(
        self,
        student: Student,
        *,
        loss: LossKind = "wbce",
        temperature: float = 0.07,
        adjoint: float = 0.0,
        adjoint_clip: float | None = None,
        precision: Precision = "fp32",
        keep: Keep = "path",
        chunk: int | None = None,
        compile: Compile = "off",
    ) -> None:
        self._frozen = student.tower is not None
        # Behind a frozen tower chunks are of its features, which go with whatever is kept.
        together: Keep = "path" if self._frozen and keep == "primals" else keep
        if mistakes := list(gradient_problems(adjoint, adjoint_clip, together, chunk)):
            raise InputError("\n".join(mistakes))
        if precision == "tf32" and student.device.type != "cuda":
            raise InputError("precision tf32: expected a CUDA device, found none; use fp32 or bf16 here")
        self._adjoint, self._clip = adjoint, adjoint_clip
        self._precision, self._keep, self._chunk = precision, keep, chunk
        self._student = student.in_bf16() if precision == "bf16" else student
        self._compiler = compiler(compile, student.device)
        self._derivatives = derivatives(
            self._student.heads,
            loss,
            temperature,
            in_theta=adjoint > 0,
            keep=keep,
            # Behind a frozen tower a batch is as small as its features.
            chunk=None if self._frozen else chunk,
            compiler=self._compiler,
        )
        self._features: Features | None = None
        self._captured = Captured()
        self._called = False

    @classmethod
    def of(cls, student: Student, config: DistillConfig) -> Self:
        """The outer step of a distillation's settings. Raises InputError where they leave open what is kept."""
        if config.keep == "auto" or config.chunk == "auto":
            raise InputError(
                "keep, chunk: expected a choice, found auto; settle it first "
                "(ptmst.distillation.budget.settled), or name one"
            )
        return cls(
            student,
            loss=config.loss,
            temperature=config.temperature,
            adjoint=config.adjoint,
            adjoint_clip=config.adjoint_clip,
            precision=config.precision,
            keep=config.keep,
            chunk=config.chunk,
            compile=config.compile,
        )

    @property
    def compiles(self) -> bool:
        """Whether the next call takes the time to compile, as the first one does."""
        return self._compiler is not None and not self._called

    @torch.no_grad()
    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        """Train from `span.start` on `batches` (int64 [n, B]) of the pairs, match the span's target, differentiate.

        `mixing` [n, B, B] is that of `outer_gradient`.
        """
        replayed = self._compiler is not None and self._student.device.type == "cuda"
        with arithmetic(self._precision):
            found = (self._replayed if replayed else self._gradient)(span, pairs, batches, mixing)
        self._called = True
        return found

    def carry(self, i: int, lam: Tensor, turned: Tensor, first: Tensor) -> Tensor:
        """λ_i [P] from λ_{i+1} [P] and `turned`, ∂/∂θ⟨−η⊙λ_{i+1}, g_i⟩ [P]; `first` is ‖λ_n‖ [G].

        The damped and clipped recursion of docs/method.md §4. A subclass that overrides it studies another one.
        """
        layers = self._student.layers
        lam = torch.add(lam, turned, alpha=self._adjoint)
        if self._clip is None:
            return lam
        norm, largest = layers.dot(lam, lam).sqrt(), self._clip * first
        return layers.scaled(lam, torch.where(norm > largest, largest / norm, 1.0))

    def _replayed(self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None) -> OuterGradient:
        def flat(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            of_span = {name: inputs[f"span.{name}"] for name in span.tensors()}
            leaves = {name: inputs[f"leaf.{name}"] for name in pairs.leaves()}
            found = self._gradient(
                span.replace(of_span), pairs.replace(leaves), inputs["batches"], inputs.get("mixing")
            )
            return {"loss": found.loss, "per_group": found.per_group, "theta": found.theta_final, **found.grads}

        inputs = {f"span.{name}": value for name, value in span.tensors().items()}
        inputs |= {f"leaf.{name}": value for name, value in pairs.leaves().items()} | {"batches": batches}
        if mixing is not None:
            inputs["mixing"] = mixing
        alpha = pairs.similarity.alpha if isinstance(pairs.similarity, LowRankSimilarity) else None
        # A recording belongs to the current device, which need not be the student's.
        with torch.cuda.device_of(batches):
            found = dict(self._captured(flat, inputs, constants=alpha))
        return OuterGradient(found.pop("loss"), found.pop("per_group"), found.pop("theta"), found)

    def _gradient(self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None) -> OuterGradient:
        if not self._frozen:
            return self._unrolled(span, pairs, pairs.images, batches, batches, mixing)
        if self._features is None:
            block = self._chunk or batches.shape[1]
            self._features = Features(self._student, block, self._keep == "primals", self._compiler)
        rows, slots = drawn(len(pairs), batches)
        features, back = self._features(pairs.images[rows])
        found = self._unrolled(span, pairs, features, slots, batches, mixing)
        images = torch.zeros_like(pairs.images).index_add_(0, rows, back(found.grads["images"]))
        return OuterGradient(found.loss, found.per_group, found.theta_final, found.grads | {"images": images})

    def _unrolled(
        self,
        span: Span,
        pairs: SyntheticPairs,
        images: Tensor,
        slots: Tensor,
        batches: Tensor,
        mixing: Tensor | None,
    ) -> OuterGradient:
        """`images` are what the inner loop sees (behind a frozen tower features), by their rows `slots` [n, B]."""
        layers, numbers = self._student.layers, range(len(batches))

        def draw(i: int) -> Batch:
            drawn_images, drawn_texts = images[slots[i]], pairs.texts[batches[i]]
            if mixing is not None:
                drawn_images, drawn_texts = blended(mixing[i], drawn_images), mixing[i] @ drawn_texts
            return Batch(drawn_images, drawn_texts, pairs.similarity.batch(batches[i]))

        def walk() -> Iterator[Step]:
            theta = span.start
            for i in numbers:
                step = self._derivatives.step(theta, pairs.lr, partial(draw, i))
                yield step
                theta = step.theta

        kept: list[Step] = []
        path = [span.start]
        for step in walk():
            if self._keep == "nothing":
                path = [step.theta]
            else:
                path.append(step.theta)
                kept.append(step)
        matched = span.match(path[-1])

        grads = {name: torch.zeros_like(leaf) for name, leaf in {**pairs.leaves(), "images": images}.items()}

        def add(i: int, found: Along) -> None:
            of_images, of_texts = found.images, found.texts
            if mixing is not None:
                of_images, of_texts = blended(mixing[i].T, of_images), mixing[i].T @ of_texts
            grads["images"].index_add_(0, slots[i], of_images)
            grads["texts"].index_add_(0, batches[i], of_texts)
            pairs.similarity.add_gradient(grads, batches[i], found.similarity)

        lam = matched.adjoint
        direction = layers.scaled(lam, -pairs.lr)
        if self._adjoint == 0:
            # θ_n − θ_start = −η ⊙ Σ_i g_i, so this is Σ_i −⟨λ_n, g_i⟩.
            grads["lr"] += matched.progress / pairs.lr
            for i, step in enumerate(kept or walk()):
                add(i, step.along(direction))
            return OuterGradient(matched.loss, matched.per_group, path[-1], grads)

        first = layers.dot(lam, lam).sqrt()
        for i in reversed(numbers):
            found = kept[i].along(direction)
            add(i, found)
            grads["lr"] += layers.dot(lam, path[i + 1] - path[i]) / pairs.lr
            if i > 0 and found.theta is not None:
                lam = self.carry(i, lam, found.theta, first)
                direction = layers.scaled(lam, -pairs.lr)
        return OuterGradient(matched.loss, matched.per_group, path[-1], grads)
