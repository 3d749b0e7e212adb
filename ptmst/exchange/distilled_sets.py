"""Distilled sets in the forms that other code reads and writes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmst import schema
from ptmst.config import ImportConfig
from ptmst.errors import InputError
from ptmst.exchange.published_recipe import published_recipe
from ptmst.recipe import Recipe
from ptmst.students.text_towers import embed_captions, nearest_captions
from ptmst.support import devices, files, folders
from ptmst.synthetic.distilled_set import FOLDER, DistilledPhase, DistilledSet
from ptmst.synthetic.pairs import SyntheticPairs
from ptmst.synthetic.soft_labels import FullSimilarity, LowRankSimilarity, Similarity

RESIDUAL = 1e-3
"""A published matrix may differ from its own factors by this much, relative to its norm."""
_GET_AGAIN = "get the published distilled set again"


def import_distilled(
    paths: Sequence[Path],
    recipe: Recipe,
    captions: Callable[[Tensor], tuple[str, ...]] | None = None,
) -> DistilledSet:
    """Read published `.pt` files, one for each phase in order, as a set for students of `recipe`.

    A file holds what `export` writes as `ptm-st`; other keys are ignored, rates may be floats, and either of
    `similarity_params` and `similarity_mat` may be missing. The alpha of low-rank soft labels is in no file: it is
    fitted to the matrix, and 1 where that is missing or R is zero. The one η of a file is taken for both `lr` and
    `last_lr` (docs/method.md §5). `captions` gives N captions for texts [N, D]; without it they are empty.

    Raises InputError for a file that is damaged or no such dictionary, for shapes that do not fit one another, and
    for values that are not finite. Nothing in a file is ever executed.
    """
    if not paths:
        raise InputError("distilled: expected a published file for each phase, found none; name them in order")
    phases: list[DistilledPhase] = []
    hashes: dict[str, str] = {}
    # Files of several phases may have one name, in folders of their own.
    whole = len({path.name for path in paths}) < len(paths)
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
        hashes[str(path) if whole else path.name] = files.sha256(content)
        pairs = _pairs(path, _dictionary(path, content))
        if phases:
            _check_alike(path, pairs, phases[0].pairs)
        phase_captions = captions(pairs.texts) if captions else ("",) * len(pairs)
        phases.append(DistilledPhase(pairs, pairs.lr.clone(), phase_captions))
    return DistilledSet(tuple(phases), {"method": "imported", "files": hashes}, recipe.to_json())


def import_set(config: ImportConfig) -> DistilledSet:
    """The published files of `config.distilled` as a distilled set, saved at `config.out`.

    Raises InputError for a file that is no such set, settings it does not fit, and a folder that is taken.
    """
    schema.check(config)
    with folders.claimed(Path(config.out), FOLDER, fresh=True):
        recipe, pairs = published_recipe(config)
        texts = embed_captions(recipe.text_tower(), pairs.captions, devices.pick("auto"))
        distilled = import_distilled(
            config.distilled, recipe, lambda embeds: nearest_captions(embeds, texts, pairs.captions)
        )
        distilled.save(config.out)
    return distilled


def _dictionary(path: Path, content: bytes) -> dict[Any, Any]:
    content = _checked(path, content)
    try:
        loaded = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # on a pickle of somebody else's making torch raises nearly anything
        raise InputError(
            f"{path}: expected a dictionary of tensors, found a pickle that asks for more, none of which was run; "
            f"{_GET_AGAIN}"
        ) from error
    if not isinstance(loaded, dict):
        raise InputError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}; {_GET_AGAIN}")
    return loaded


def _checked(path: Path, content: bytes) -> bytes:
    """A file of torch.save, each entry compared with its CRC and packed again.

    torch does not verify CRCs, so verified entries are packed again before they are loaded.
    """
    buffer = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(buffer, "w") as packed:
            entries = {entry.filename: entry for entry in archive.infolist()}
            # torch compresses nothing and overlaps nothing: what would grow here was made to fill the memory.
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise zipfile.BadZipFile
            for name, entry in entries.items():
                packed.writestr(name, archive.read(entry))
    except Exception as error:  # on broken bytes zipfile raises nearly anything
        raise InputError(
            f"{path}: expected a whole file of torch.save, found a damaged file or another kind; {_GET_AGAIN}"
        ) from error
    return buffer.getvalue()


def _pairs(path: Path, entries: dict[Any, Any]) -> SyntheticPairs:
    images = _tensor(path, "image", _value(entries, "image"), "N", 3, "H", "W")
    n = len(images)
    texts = _tensor(path, "text", _value(entries, "text"), n, "D")
    similarity = _similarity(path, entries, n)
    lr = torch.stack([_rate(path, name, _value(entries, name)) for name in ("syn_lr_img", "syn_lr_txt")])
    return SyntheticPairs(images, texts, similarity, lr)


def _similarity(path: Path, entries: dict[Any, Any], n: int) -> Similarity:
    params, matrix = (_value(entries, name) for name in ("similarity_params", "similarity_mat"))
    if params is None and matrix is None:
        raise InputError(f"{path}: expected similarity_params or similarity_mat, found neither; {_GET_AGAIN}")
    if matrix is not None:
        matrix = _tensor(path, "similarity_mat", matrix, n, n)
    if params is None:
        return FullSimilarity(matrix)
    if not isinstance(params, list | tuple) or len(params) not in (1, 3):
        count = len(params) if isinstance(params, list | tuple) else type(params).__name__
        raise InputError(f"{path}: expected a list of 1 or 3 tensors as similarity_params, found {count}; {_GET_AGAIN}")
    if len(params) == 1:
        return FullSimilarity(_tensor(path, "similarity_params", params[0], n, n))
    diag = _tensor(path, "similarity_params", params[0], n)
    left = _tensor(path, "similarity_params", params[1], n, "rank")
    right = _tensor(path, "similarity_params", params[2], n, left.shape[1])
    if matrix is None:
        return LowRankSimilarity(diag, left, right, 1.0)
    product = left.double() @ right.double().T
    square = float((product * product).sum())
    fitted = float(((matrix.double() - torch.diag(diag.double())) * product).sum()) / square if square else None
    similarity = LowRankSimilarity(diag, left, right, 1.0 if fitted is None else fitted * left.shape[1])
    residual = float((similarity.dense().double() - matrix.double()).norm())
    norm = float(matrix.double().norm())
    if not residual <= RESIDUAL * norm:  # NaN, too, is refused
        raise InputError(
            f"{path}: expected a similarity_mat that its similarity_params make, found one that differs from the "
            f"nearest by {residual:.3g} of {norm:.3g}; {_GET_AGAIN}"
        )
    return similarity


def _value(entries: dict[Any, Any], name: str) -> Any:
    # A file may give an OrderedDict attributes, a `get` among them.
    return dict.get(entries, name)


def _tensor(path: Path, name: str, value: Any, *shape: int | str) -> Tensor:
    """A float32 tensor of `shape`, where letters stand for any number from 1."""
    expected = f"{path}: expected {name} of shape [{', '.join(map(str, shape))}]"
    if value is None:
        raise InputError(f"{expected}, found none; {_GET_AGAIN}")
    if not isinstance(value, Tensor):
        raise InputError(f"{expected}, found {type(value).__name__}; {_GET_AGAIN}")
    if (
        value.layout != torch.strided
        or value.device.type != "cpu"
        or value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    ):
        raise InputError(f"{expected}, found {value.dtype}, {value.layout}, {value.device}; {_GET_AGAIN}")
    # A file may give a parameter attributes, which would stand before its methods.
    tensor: Tensor = Tensor.detach(value)
    fits = len(tensor.shape) == len(shape) and all(
        size == wanted or (isinstance(wanted, str) and size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    # A tensor with strides of zero claims more than its file holds.
    if not fits or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{expected}, found {list(tensor.shape)}; {_GET_AGAIN}")
    tensor = tensor.float().contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{path}: expected finite {name}, found NaN or infinity; {_GET_AGAIN}")
    return tensor


def _rate(path: Path, name: str, value: Any) -> Tensor:
    """A rate as float32 [], from a float or a tensor of one number."""
    if isinstance(value, float):
        value = torch.tensor(value, dtype=torch.float64)
    if isinstance(value, Tensor) and value.shape == (1,):
        return _tensor(path, name, value, 1)[0]
    return _tensor(path, name, value)


def _check_alike(path: Path, pairs: SyntheticPairs, first: SyntheticPairs) -> None:
    for name, ours, theirs in (("image", pairs.images, first.images), ("text", pairs.texts, first.texts)):
        if ours.shape[1:] != theirs.shape[1:]:
            raise InputError(
                f"{path}: expected each {name} of shape {list(theirs.shape[1:])}, as in the first file, found "
                f"{list(ours.shape[1:])}; import sets of one encoder together"
            )
