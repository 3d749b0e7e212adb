"""Experts as other methods would have them, made from those of a store: stores that are distilled like any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ptmst import TrajectoryStore
from ptmst.trajectories.shortcut import Displacement, Expert


def convex(experts: Mapping[int, Expert]) -> dict[int, Expert]:
    """Shortcuts whose points are evenly spaced: convex combinations of start and end, as MCT has them."""
    return {n: replace(expert, step_norms=torch.ones_like(expert.step_norms)) for n, expert in experts.items()}


def averaged(experts: Mapping[int, Expert]) -> dict[int, Expert]:
    """Every expert moves as all do on average, from its own start."""
    every = list(experts.values())
    layers, epochs = every[0].layers, every[0].displacements
    moves = {k: torch.stack([one.displacements[k].decode(layers) for one in every]).mean(0) for k in epochs}
    shared = {k: Displacement.encode(move, layers) for k, move in moves.items()}
    norms = torch.stack([one.step_norms for one in every]).mean(0)
    return {n: replace(expert, displacements=shared, step_norms=norms) for n, expert in experts.items()}


KINDS: dict[str, Callable[[Mapping[int, Expert]], dict[int, Expert]]] = {"convex": convex, "averaged": averaged}


def made(kind: str, store: TrajectoryStore, folder: Path) -> Path:
    """The store of a kind, in a folder; it stays as it is where it is there."""
    if not (folder / "store.json").exists() or len(TrajectoryStore.open(folder)) < len(store):
        other = TrajectoryStore(folder, store.layers, store.epochs, store.endpoints, store.settings)
        if store.tower is not None:
            other.add_file("tower.safetensors", store.tower)
        for number, expert in KINDS[kind]({number: store.expert(number) for number in store.experts}).items():
            other.add(number, expert, {"losses": []})
        other.save_index()
    return folder
