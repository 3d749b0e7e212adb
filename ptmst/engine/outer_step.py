"""One outer step: settings, a frozen tower's features and CUDA graphs around the recursion (docs/method.md §4)."""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from ptmst.config import Compile, DistillConfig, Keep, LossKind, Precision, gradient_problems
from ptmst.engine import tangents
from ptmst.engine.compilation import compiler
from ptmst.engine.cuda_graph import Captured
from ptmst.engine.derivatives import Batch, derivatives, why_not_differentiable
from ptmst.engine.frozen_tower import Features, drawn
from ptmst.engine.recursion import Adjoint, Damped, InnerLoop, OuterGradient, Truncated, differentiate
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
    adjoint: float | Adjoint = 0.0,
    adjoint_clip: float | None = None,
    mixing: Tensor | None = None,
) -> OuterGradient:
    """Train from θ_start [P] on `batches` (int64 [n, B]) of the pairs, match θ_target [P], differentiate.

    `adjoint` is an `Adjoint`, or the share c of the recursion λ ← λ + c ∂/∂θ⟨−η⊙λ, g_i⟩: 0 is the truncated gradient
    of the paper, 1 the exact one, between them it is damped. `adjoint_clip` then bounds ‖λ‖ by that multiple of ‖λ_n‖
    in each group.
    `mixing` [n, B, B] blends each batch: its images (behind a frozen tower their features) and texts become that
    matrix times them, S stays (RepBlend).
    Memory holds the n parameter vectors of the inner loop, and the activations of one step. For many steps of one
    student make an `OuterStep` once, which can compile.

    Raises InputError for an unknown loss, and where a group's span from θ_start to θ_target has length 0.
    """
    step = OuterStep(student, loss=loss, temperature=temperature, adjoint=adjoint, adjoint_clip=adjoint_clip)
    return step(RawSpan.between(theta_start, theta_target, student.layers), pairs, batches, mixing)


class TakesOuterStep(Protocol):
    """What distillation asks of an outer step: `OuterStep`, or one that is studied."""

    @property
    def compiles(self) -> bool:
        """Whether the next call takes the time to compile."""

    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        """The gradient of `OuterStep.__call__`."""


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
        adjoint: float | Adjoint = 0.0,
        adjoint_clip: float | None = None,
        precision: Precision = "fp32",
        keep: Keep = "path",
        chunk: int | None = None,
        compile: Compile = "off",
    ) -> None:
        self._frozen = student.frozen is not None
        # Behind a frozen tower chunks are of its features, which go with whatever is kept.
        together: Keep = "path" if self._frozen and keep == "primals" else keep
        share = adjoint if isinstance(adjoint, int | float) else float(adjoint.moves)
        if mistakes := list(gradient_problems(share, adjoint_clip, together, chunk)):
            raise InputError("\n".join(mistakes))
        if precision == "tf32" and student.device.type != "cuda":
            raise InputError("precision tf32: expected a CUDA device, found none; use fp32 or bf16 here")
        self._adjoint = _as_adjoint(adjoint, adjoint_clip)
        self._precision, self._keep, self._chunk = precision, keep, chunk
        self._student = student.in_bf16() if precision == "bf16" else student
        self._compiler = compiler(compile, student.device)
        self._derivatives = derivatives(
            self._student.heads,
            loss,
            temperature,
            in_theta=self._adjoint.moves,
            keep=keep,
            # Behind a frozen tower a batch is as small as its features.
            chunk=None if self._frozen else chunk,
            compiler=self._compiler,
        )
        self._features: Features | None = None
        self._captured = Captured()
        self._called = self._tried = False

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

    def with_adjoint(self, adjoint: float | Adjoint, adjoint_clip: float | None = None) -> Self:
        """The same step with another adjoint: it shares what is compiled.

        Raises InputError where one of the two adjoints needs the derivative in θ and the other does not.
        """
        other = copy(self)
        other._adjoint = _as_adjoint(adjoint, adjoint_clip)
        other._captured = Captured()
        if other._adjoint.moves != self._adjoint.moves:
            raise InputError(f"adjoint: expected one like {self._adjoint}, found {adjoint}; make another OuterStep")
        return other

    @property
    def compiles(self) -> bool:
        """Whether the next call takes the time to compile, as the first one does."""
        return self._compiler is not None and not self._called

    @torch.no_grad()
    def __call__(
        self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None
    ) -> OuterGradient:
        """Train from `span.start` on `batches` (int64 [n, B]) of the pairs, match the span's target, differentiate.

        `mixing` [n, B, B] is that of `outer_gradient`. The first call raises InputError for a student that torch cannot
        differentiate, and for one with a compiled part or an `autograd.Function` whose derivatives are not those of
        finite differences.
        """
        replayed = self._compiler is not None and self._student.device.type == "cuda"
        with arithmetic(self._precision):
            gradient = (self._replayed if replayed else self._gradient)(span, pairs, batches, mixing)
        self._called = True
        return gradient

    @torch.no_grad()
    def walk(self, theta: Tensor, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None = None) -> Tensor:
        """θ_n [P] after the inner steps from `theta` on `batches` (int64 [n, B]) of the pairs, without a gradient."""
        with arithmetic(self._precision):
            images = pairs.images
            if self._frozen and pairs.in_pixels:
                blocks = images.split(self._chunk or batches.shape[1])
                images = torch.cat([self._student.features(some) for some in blocks])
            inner = InnerLoop(pairs, batches, mixing, images, batches)
            for i in range(len(inner)):
                theta = self._derivatives.step(theta, pairs.lr, partial(inner.batch, i)).theta
        return theta

    def _replayed(self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None) -> OuterGradient:
        def flat(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            of_span = {name: inputs[f"span.{name}"] for name in span.tensors()}
            leaves = {name: inputs[f"leaf.{name}"] for name in pairs.leaves()}
            gradient = self._gradient(
                span.replace(of_span), pairs.replace(leaves), inputs["batches"], inputs.get("mixing")
            )
            return {
                "loss": gradient.loss,
                "per_group": gradient.per_group,
                "theta": gradient.theta_final,
                **gradient.grads,
            }

        inputs = {f"span.{name}": value for name, value in span.tensors().items()}
        inputs |= {f"leaf.{name}": value for name, value in pairs.leaves().items()} | {"batches": batches}
        if mixing is not None:
            inputs["mixing"] = mixing
        alpha = pairs.similarity.alpha if isinstance(pairs.similarity, LowRankSimilarity) else None
        # A recording belongs to the current device, which need not be the student's.
        with torch.cuda.device_of(batches):
            outputs = dict(self._captured(flat, inputs, constants=alpha))
        return OuterGradient(outputs.pop("loss"), outputs.pop("per_group"), outputs.pop("theta"), outputs)

    def _gradient(self, span: Span, pairs: SyntheticPairs, batches: Tensor, mixing: Tensor | None) -> OuterGradient:
        if not self._frozen or not pairs.in_pixels:
            return self._differentiated(span, InnerLoop(pairs, batches, mixing, pairs.images, batches))
        if self._features is None:
            block = self._chunk or batches.shape[1]
            self._features = Features(self._student, block, self._keep == "primals", self._compiler)
        rows, slots = drawn(len(pairs), batches)
        features, back = self._features(pairs.images[rows])
        gradient = self._differentiated(span, InnerLoop(pairs, batches, mixing, features, slots))
        images = torch.zeros_like(pairs.images).index_add_(0, rows, back(gradient.grads["images"]))
        return OuterGradient(
            gradient.loss, gradient.per_group, gradient.theta_final, gradient.grads | {"images": images}
        )

    def _differentiated(self, span: Span, inner: InnerLoop) -> OuterGradient:
        layers, store_path = self._student.layers, self._keep != "nothing"
        if self._tried or not len(inner):
            return differentiate(self._derivatives, layers, span, inner, self._adjoint, store_path)
        # Before a CUDA graph is recorded, in which nothing can be tried.
        batch = inner.batch(0)
        try:
            self._refuse_lost_derivatives(span.start, batch)
            gradient = differentiate(self._derivatives, layers, span, inner, self._adjoint, store_path)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            self._refuse_without_derivatives(batch)
            raise
        self._tried = True
        return gradient

    def _refuse_lost_derivatives(self, theta: Tensor, batch: Batch) -> None:
        """Of students of torch's own operations none are."""
        most = None if self._frozen else self._chunk
        if tangents.opaque(self._student.heads, theta, batch.images[:most], batch.texts[:most]):
            self._refuse_without_derivatives(batch)

    def _refuse_without_derivatives(self, batch: Batch) -> None:
        """Raises InputError for a student that torch cannot differentiate."""
        heads, images, texts = self._student.heads, batch.images[:2], batch.texts[:2]
        # What its modules do not even take, such as another width, is no matter of derivatives: they say so themselves.
        for module, inputs in zip(heads.modules[:2], (images, texts), strict=True):
            module(inputs)
        reason = why_not_differentiable(heads, self._keep, self._adjoint.moves, images, texts)
        if reason is not None:
            raise InputError(
                f"student: expected modules that keep {self._keep} can differentiate, found a part that it cannot "
                f"({reason}); give the module without torch.compile, torch.jit and checkpoints of activations, and "
                "write backward and jvp of an autograd.Function in torch's operations"
            )


def _as_adjoint(adjoint: float | Adjoint, clip: float | None) -> Adjoint:
    """A share of 0 is the truncated gradient, whatever the clip."""
    if not isinstance(adjoint, int | float):
        if clip is not None:
            raise InputError(f"adjoint_clip: expected none beside {adjoint}, found {clip}; give the clip to Damped")
        return adjoint
    return Damped(adjoint, clip) if adjoint > 0 else Truncated()
