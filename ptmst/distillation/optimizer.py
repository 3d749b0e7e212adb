"""The outer optimizer: its state, one update of every leaf, and their average (docs/method.md §3, §5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptmst import kernels
from ptmst.config import DistillConfig, LeafRates
from ptmst.engine.recursion import OuterGradient
from ptmst.synthetic.pairs import SyntheticPairs

_ADAM_BETA2, _ADAM_EPS = 0.99, 1e-8


def outer_update(state: OuterState, gradient: OuterGradient, config: DistillConfig) -> OuterState:
    """One step of the outer optimizer on every leaf, then of the average (docs/method.md §3, §5); in place."""
    leaves, average = state.pairs.leaves(), state.average.leaves()
    for name, leaf in leaves.items():
        grad = gradient.grads[name]
        if name == "lr" and config.lr_scale == "log":
            exponent = leaf.log()
            _descend(state, name, exponent, leaf * grad, exponent.clone(), config)
            leaf.copy_(exponent.exp_())
            average[name].lerp_(leaf, 1 - config.ema)
        elif name == "similarity" and (config.similarity_range == "unit" or config.similarity_pull):
            _descend(state, name, leaf, grad, leaf.clone(), config)
            average[name].lerp_(_held(leaf, config), 1 - config.ema)
        else:
            _descend(state, name, leaf, grad, average[name], config)
    state.loss[state.step] = gradient.per_group
    state.lr[state.step] = leaves["lr"]
    return replace(state, step=state.step + 1)


def _descend(state: OuterState, name: str, leaf: Tensor, grad: Tensor, average: Tensor, config: DistillConfig) -> None:
    """One step on a leaf, or on what it is a function of; in place."""
    rate, buffer = _rate(config.rates, name) * _left_of_rates(config, state.step), state.first_moment[name]
    if config.optimizer == "sgd":
        kernels.sgd_ema_(leaf, grad, buffer, average, rate, config.momentum, config.ema)
        return
    second, t = state.second_moment[name], state.step + 1
    buffer.lerp_(grad, 1 - config.momentum)
    second.mul_(_ADAM_BETA2).addcmul_(grad, grad, value=1 - _ADAM_BETA2)
    scale = (second / (1 - _ADAM_BETA2**t)).sqrt_().add_(_ADAM_EPS)
    leaf.addcdiv_(buffer, scale, value=-rate / (1 - config.momentum**t))
    average.lerp_(leaf, 1 - config.ema)


def _held(labels: Tensor, config: DistillConfig) -> Tensor:
    """Soft labels [N, N] after an outer step, pulled toward the identity and clamped as configured; in place."""
    if config.similarity_pull:
        labels.mul_(1 - config.similarity_pull).diagonal().add_(config.similarity_pull)
    return labels.clamp_(0, 1) if config.similarity_range == "unit" else labels


def _left_of_rates(config: DistillConfig, step: int) -> float:
    """Factor on every rate at an outer step."""
    return 1.0 if config.rate_decay == "none" else (1 + math.cos(math.pi * step / config.steps)) / 2


def _rate(rates: LeafRates, leaf: str) -> float:
    return float(getattr(rates, leaf if leaf in ("images", "texts", "lr") else "similarity"))


@dataclass(frozen=True)
class OuterState:
    """One phase between outer steps: leaves, their average, and the optimizer's moments; updated in place."""

    step: int
    pairs: SyntheticPairs
    average: SyntheticPairs
    first_moment: dict[str, Tensor]
    second_moment: dict[str, Tensor]
    """Of adam; empty for sgd."""
    loss: Tensor
    """[steps, G], filled up to `step`; beside the leaves, so that no step waits for it."""
    lr: Tensor
    """[steps, G], likewise."""
    recall: Tensor
    """[looks], percent, on the host, filled up to `step`, after which it is -1; none where recall is not tracked."""
    best: SyntheticPairs
    """The average at the look with the highest recall; at each moment the average, where recall is not tracked."""
    best_lr: Tensor
    """[G], η without averaging at that look; where recall is not tracked, η at the start."""

    @classmethod
    def begin(cls, pairs: SyntheticPairs, config: DistillConfig) -> OuterState:
        leaves = pairs.leaves()
        history = pairs.lr.new_zeros(config.steps, len(pairs.lr))
        average = pairs.replace({name: leaf.clone() for name, leaf in leaves.items()})
        looks = -(-config.steps // config.track_recall) if config.track_recall else 0
        return cls(
            step=0,
            pairs=pairs,
            average=average,
            first_moment={name: torch.zeros_like(leaf) for name, leaf in leaves.items()},
            second_moment={n: torch.zeros_like(v) for n, v in leaves.items()} if config.optimizer == "adam" else {},
            loss=history,
            lr=history.clone(),
            recall=torch.full((looks,), -1.0),
            best=pairs.replace({name: leaf.clone() for name, leaf in leaves.items()}) if looks else average,
            best_lr=pairs.lr.clone(),
        )

    def optimized(self) -> dict[str, Tensor]:
        """What the next step starts from: finite, as long as nothing diverged."""
        return _named({"leaf": self.pairs.leaves(), "first": self.first_moment, "second": self.second_moment})

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        history = {"loss": self.loss, "lr": self.lr}
        looked = {"recall": self.recall, "lr": self.best_lr}
        tracked = {"best": self.best.leaves(), "tracked": looked} if len(self.recall) else {}
        return self.optimized() | _named({"average": self.average.leaves(), "history": history, **tracked})

    def look(self, recall: float) -> None:
        """Record the recall of the present average, which is kept if none before was as good."""
        if not bool((self.recalls >= recall).any()):
            for name, leaf in self.best.leaves().items():
                leaf.copy_(self.average.leaves()[name])
            self.best_lr.copy_(self.pairs.lr)
        self.recall[len(self.recalls)] = recall

    @property
    def recalls(self) -> Tensor:
        """Of the looks up to `step`."""
        return self.recall[self.recall >= 0]

    def restored(self, step: int, tensors: Mapping[str, Tensor]) -> OuterState:
        """The state of a checkpoint that was written from one of this form."""
        both = [(value, tensors[name].view_as(value)) for name, value in self.tensors().items()]
        for value, stored in both:
            value.copy_(stored)
        return replace(self, step=step)


def _named(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
