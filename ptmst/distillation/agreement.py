"""Whether experts are those that an experiment was planned with."""

from __future__ import annotations

from ptmst.config import TeachConfig
from ptmst.errors import InputError
from ptmst.trajectories.store import TrajectoryStore

_KINDS = {True: "a frozen", False: "a trained"}


def refuse_other_experts(store: TrajectoryStore, teaching: TeachConfig, preset: str) -> None:
    """Raise InputError where the experts' image tower is frozen and that of the preset's `teaching` is not, or vice
    versa: rates for one do not fit the other."""
    expected, found = teaching.encoder.freeze_tower, store.recipe.encoder.freeze_tower
    if found != expected:
        raise InputError(
            f"{store.path}: expected experts on {_KINDS[expected]} image tower, as preset {preset} has it, found "
            f"{_KINDS[found]} one; run `ptmst teach` with the same preset"
        )
