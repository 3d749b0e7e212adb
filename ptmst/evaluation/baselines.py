"""What a distilled set has to beat: as many real pairs, chosen at random or with care, as a distilled set.

The careful ones see the data as the store's experts do. Each image has one caption, drawn at random.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmst import schema
from ptmst.config import Device, Places, Selection
from ptmst.data import Pairs, image_batches
from ptmst.data.batches import IMAGES_AT_ONCE
from ptmst.data.sampling import random_subset, refuse_more
from ptmst.errors import InputError
from ptmst.students.features import feature_batches, kept_features
from ptmst.support import devices
from ptmst.support.provenance import versions
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity
from ptmst.trajectories.store import TrajectoryStore

_TOGETHER = 128
"""Pairs among which one has to find its own to count as known: a teacher's batch."""


def subset(
    store: TrajectoryStore,
    selection: Selection,
    count: int,
    lr: float,
    seed: int,
    device: Device = "auto",
    places: Places | None = None,
) -> DistilledSet:
    """`count` real pairs of the store's data, matched one to one, with student learning rate `lr` in every group.

    `places` are those of data and towers that have moved since teaching.

    `herding` keeps the mean of the embeddings (Welling 2009), `kcenter` covers them (Sener & Savarese 2018),
    `forgetting` takes the pairs that an expert learns and forgets most often, and those it never learns first
    (Toneva et al. 2019); the provenance has the share of all pairs that are never learned. Embeddings are those of one
    expert, by `seed`.

    Raises InputError for an unknown selection, a count or rate that is not positive, where the data hold fewer images
    or are no longer those of the store, and for `forgetting` where the store keeps fewer than two end points.
    """
    if selection not in get_args(Selection):
        known = list(get_args(Selection))
        raise InputError(f"selection: expected {', '.join(known)}, found {selection}{schema.nearest(selection, known)}")
    if count < 1:
        raise InputError(f"pairs: expected at least 1, found {count}; raise it")
    if not 0 < lr < float("inf"):
        raise InputError(f"lr: expected a positive number, found {lr}; name one")
    torch_device = devices.pick(device)
    store = store if places is None else store.at(places)
    pairs, texts = store.recipe.training_pairs(torch_device)
    refuse_more(count, pairs)
    chosen = random_subset(pairs, seed, count if selection == "random" else len(pairs.image_names))
    more: dict[str, Any] = {}
    if selection == "forgetting":
        learned = _known(store, pairs, texts, chosen, seed, torch_device)
        chosen = chosen[most_forgotten(learned)[:count]]
        # Where it is above count / N, the set is a draw from the pairs that are never learned.
        more = {"never_learned": float((~learned.any(1)).float().mean())}
    elif selection != "random":
        embeds = torch.cat(_embeddings(store, pairs, texts, chosen, seed, max(store.endpoints), torch_device), dim=1)
        chosen = chosen[(herded if selection == "herding" else k_centers)(embeds, count)]
    rates = torch.full((store.layers.num_groups,), lr)
    images = pairs.images(pairs.image_of_text[chosen])
    synthetic = SyntheticPairs(images, texts[chosen].clone(), FullSimilarity.identity(count), rates)
    phase = DistilledPhase(synthetic, rates, tuple(pairs.captions[i] for i in chosen.tolist()))
    provenance = {"method": selection, "seed": seed, "store_sha256": store.fingerprint, "versions": versions()}
    return DistilledSet((phase,), provenance | more, store.settings, store.tower)


def random_pairs(store: TrajectoryStore, count: int, lr: float, seed: int) -> DistilledSet:
    """`subset` with random pairs. Raises InputError for a count that is not positive or more than the images."""
    return subset(store, "random", count, lr, seed)


def herded(embeds: Tensor, count: int) -> Tensor:
    """Rows of embeds [N, D] whose mean stays nearest to the mean of all, one after another: int64 [count]."""
    mean, left = embeds.mean(0), embeds.clone()
    total, chosen = torch.zeros_like(mean), []
    for k in range(1, count + 1):
        # ‖mean − (total + e)/k‖² is least.
        best = int((k * mean - total - left).square().sum(1).argmin())
        chosen.append(best)
        total += embeds[best]
        left[best] = float("inf")
    return torch.tensor(chosen)


def k_centers(embeds: Tensor, count: int) -> Tensor:
    """Rows of embeds [N, D], each the farthest from those before it, the first nearest to the mean: int64 [count]."""
    chosen = [int((embeds - embeds.mean(0)).square().sum(1).argmin())]
    nearest = torch.full((len(embeds),), float("inf"))
    while len(chosen) < count:
        nearest = torch.minimum(nearest, (embeds - embeds[chosen[-1]]).square().sum(1))
        nearest[chosen[-1]] = -1.0
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)


def most_forgotten(known: Tensor) -> Tensor:
    """Rows of known, bool [N, T] over time, by how often known turns to unknown; those never known come first."""
    forgotten = (known[:, :-1] & ~known[:, 1:]).sum(1)
    forgotten[~known.any(1)] = known.shape[1]
    return forgotten.argsort(descending=True, stable=True)


def _known(
    store: TrajectoryStore, pairs: Pairs, texts: Tensor, chosen: Tensor, seed: int, device: torch.device
) -> Tensor:
    """bool [N, T]: whether a pair's image and text find each other among a batch of others, at every kept epoch."""
    if len(store.endpoints) < 2:
        raise InputError(
            f"{store.path}: expected at least two end points to see pairs forgotten, found "
            f"{', '.join(map(str, store.endpoints))}; teach with --endpoints all"
        )
    columns = []
    for epoch in store.endpoints:
        images, captions = _embeddings(store, pairs, texts, chosen, seed, epoch, device)
        known = []
        for z, t in zip(images.split(_TOGETHER), captions.split(_TOGETHER), strict=True):
            scores = z @ t.T
            own = scores.diagonal()
            # Each is counted itself; another with the same score is not told from it, as where an expert has collapsed.
            known.append((scores >= own).sum(0).eq(1) & (scores >= own[:, None]).sum(1).eq(1))
        columns.append(torch.cat(known))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def _embeddings(
    store: TrajectoryStore, pairs: Pairs, texts: Tensor, chosen: Tensor, seed: int, epoch: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Normalized images and texts [N, H] of the chosen pairs, as one expert embeds them after an epoch."""
    numbers = sorted(store.experts)
    expert = store.expert(numbers[seed % len(numbers)], (epoch,))
    theta, student = expert.raw().point(epoch).to(device), store.student((seed, "student")).to(device)
    indices = pairs.image_of_text[chosen].split(IMAGES_AT_ONCE)
    if student.frozen is None:
        batches = image_batches(pairs, indices, device)
    else:
        batches = feature_batches(kept_features(student, pairs, device), indices, device)
    with devices.arithmetic("fp32"):
        images = torch.cat([student.heads.embed_images(theta, batch) for batch in batches])
        captions = student.embed_texts(theta, texts[chosen].to(device))
    return F.normalize(images, dim=1).cpu(), F.normalize(captions, dim=1).cpu()
