"""Published replay buffers, read into a trajectory store: LoRS, RepBlend and PTM-ST, and MTT's of one network.

A buffer is a list of trajectories, each a list of timestamps, each a list of the network's tensors (docs/method.md §8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import config as configs
from ptmst import schema
from ptmst.config import ImportConfig
from ptmst.errors import InputError
from ptmst.exchange.published_recipe import published_recipe
from ptmst.students.layers import LayerTable
from ptmst.support import folders, progress
from ptmst.support.published import load_published
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.store import FOLDER, TrajectoryStore

Timestamps = Sequence[Sequence[Tensor]]


def import_buffers(config: ImportConfig) -> TrajectoryStore:
    """The experts of published buffers as a store, displacements of the kept end points only.

    Image and text files belong together in the order given; each trajectory in them is an expert. Layers are those of
    the encoder that the config names, and shapes must be theirs. Files are read one pair at a time, mapped into memory
    where their format allows it. Raises InputError for a file that is no such buffer; nothing in one is ever executed.
    """
    schema.check(config)
    if not config.images and not config.networks:
        raise InputError("images: expected buffers to import, found none; name img_replay_buffer_*.pt, or --networks")
    sources: list[tuple[Path, ...]] = [(path,) for path in config.networks]
    sources += zip(config.images, config.texts, strict=True)
    with folders.claimed(Path(config.out), FOLDER, fresh=True):
        layers, settings = _of_network(config) if config.networks else _of_encoder(config)
        with progress.bar("import", len(sources), 0) as bar:
            store: TrajectoryStore | None = None
            try:
                for paths in sources:
                    for trajectory in _trajectories(paths):
                        store = _add(trajectory, paths, layers, settings, config, store)
                    bar.advance(", ".join(path.name for path in paths))
                assert store is not None
                store.save_index()
            except BaseException:
                if store is not None:
                    store.discard()
                raise
    return store


def _add(
    trajectory: tuple[Timestamps, ...],
    paths: tuple[Path, ...],
    layers: LayerTable,
    settings: dict[str, Any],
    config: ImportConfig,
    store: TrajectoryStore | None,
) -> TrajectoryStore:
    epochs = len(trajectory[0]) - 1
    stored_epochs = configs.stored_epochs(config.endpoints, epochs)
    if past := [k for k in stored_epochs if k > epochs]:
        raise InputError(
            f"{paths[0]}: expected an epoch {past[0]} to keep, found {epochs} epochs; lower --endpoints, or keep all"
        )
    if store is None:
        store = TrajectoryStore(config.out, layers, epochs, stored_epochs, settings, config.coding)
    if store.epochs != epochs:
        raise InputError(f"{paths[0]}: expected {store.epochs} epochs as in the first buffer, found {epochs}")
    recorder = Recorder(layers, stored_epochs)
    for epoch in range(epochs + 1):
        tensors = [tensor for part in trajectory for tensor in part[epoch]]
        recorder.record(_flat(tensors, layers, paths))
    store.write_expert(len(store), recorder.expert(), {"losses": [], "from": [path.name for path in paths]})
    return store


def _flat(tensors: list[Tensor], layers: LayerTable, paths: tuple[Path, ...]) -> Tensor:
    origin = " + ".join(path.name for path in paths)
    for name, shape, tensor in zip_longest(layers.names, layers.shapes, tensors):
        actual_shape = None if tensor is None else tuple(tensor.shape)
        if actual_shape != shape:
            raise InputError(
                f"{origin}: expected {name or 'no more layers'} of shape {shape}, found {actual_shape}; name the "
                "encoder it was made with (--encoder.image-tower and so on)"
            )
    theta = layers.flatten([tensor.float() for tensor in tensors])
    if not bool(torch.isfinite(theta).all()):
        raise InputError(f"{origin}: expected finite parameters, found NaN or infinity; the buffer is damaged")
    return theta


def _trajectories(paths: tuple[Path, ...]) -> Iterator[tuple[Timestamps, ...]]:
    buffers = [_read(path) for path in paths]
    counts = [len(buffer) for buffer in buffers]
    if len(set(counts)) > 1:
        raise InputError(f"{paths[1]}: expected {counts[0]} trajectories as in {paths[0].name}, found {counts[1]}")
    for parts in zip(*buffers, strict=True):
        lengths = [len(part) for part in parts]
        if len(set(lengths)) > 1:
            raise InputError(f"{paths[1]}: expected {lengths[0]} timestamps as in {paths[0].name}, found {lengths[1]}")
        yield parts


def _read(path: Path) -> list[Timestamps]:
    buffer = load_published(path)
    good = isinstance(buffer, list) and len(buffer) > 0
    good = good and all(isinstance(trajectory, list) and len(trajectory) > 1 for trajectory in buffer)
    good = good and all(
        isinstance(stamp, list | tuple) and stamp and all(isinstance(tensor, Tensor) for tensor in stamp)
        for trajectory in buffer
        for stamp in trajectory
    )
    if not good:
        raise InputError(
            f"{path}: expected a replay buffer (trajectories of timestamps of tensors), found something else; "
            "check the path"
        )
    return list(buffer)


def _of_encoder(config: ImportConfig) -> tuple[LayerTable, dict[str, Any]]:
    """Layers and settings of the encoder and data that the buffers belong to."""
    recipe, _ = published_recipe(config)
    return recipe.student((0,)).layers, recipe.to_json()


def _of_network(config: ImportConfig) -> tuple[LayerTable, dict[str, Any]]:
    """Of one network, of which nothing is known but the shapes of its tensors."""
    first = _read(config.networks[0])[0][0]
    shapes = tuple(tuple(tensor.shape) for tensor in first)
    names = tuple(f"network.{number}" for number in range(len(shapes)))
    return LayerTable(names, shapes, (0,) * len(shapes), ("network",)), {}
