"""Weights of towers in files: state dicts as others write them, and what does not fit."""

from __future__ import annotations

import logging
import multiprocessing
import re
from collections.abc import Iterable, Mapping, Sized
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptmst.errors import InputError
from ptmst.support import files, kinds
from ptmst.support.published import load_published

_LOG = logging.getLogger(__name__)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Load a state dict; layers of a classifier that the module lacks are passed over, missing ones refused.

    What DataParallel, torch.compile or Lightning put before the names is left out. Raises InputError.
    """
    known = module.state_dict()
    named = named_as(known, weights)
    wrong = [k for k, v in known.items() if k not in named or named[k].shape != v.shape]
    if wrong:
        found = tuple(named[wrong[0]].shape) if wrong[0] in named else "nothing"
        theirs = _first(name for name in named if name not in known)
        ours = f"{wrong[0]} {tuple(known[wrong[0]].shape)} ({_count(wrong)})"
        beside, advice = f" beside {theirs}" if theirs and wrong[0] not in named else "", ""
        if theirs and not any(name in named for name in known):
            beside += f", where the tower has {_first(known)}"
            if Path(source).suffix == _UNORDERED:
                advice = ", or give the file of torch.save, whose order can tell (safetensors keeps none)"
        raise InputError(
            f"{source}: expected weights of this tower, found {found} for {ours}{beside}; name the tower these weights "
            f"belong to{advice}"
        )
    if broken := [k for k, v in known.items() if v.is_floating_point() and not bool(named[k].isfinite().all())]:
        raise InputError(f"{source}: expected numbers, found NaN or infinity in {broken[0]}; fetch the file again")
    module.load_state_dict({k: named[k] for k in known})


_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
"""Keys of a training checkpoint under which its model may lie."""
_UNORDERED = ".safetensors"
_PREFIXES = (re.compile(r"^(?:module\.|_orig_mod\.)+|(?<=\.)_orig_mod\."), re.compile(r"^model\."))
"""Of DataParallel and torch.compile, which may also wrap a part; of Lightning."""


def named_as(known: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights by the names of a module, wherever these are found behind a prefix."""
    for prefix in _PREFIXES:
        plain = {name if name in known else prefix.sub("", name): value for name, value in weights.items()}
        if len(plain) == len(weights):  # two of one name are told as what lacks
            weights = plain
    return weights


def weights_for(module: nn.Module, path: Path, of: str, source: Path | str) -> Mapping[str, Tensor]:
    """`read_weights`, `by_order` where the file keeps one: safetensors does not. Raises InputError."""
    weights = read_weights(path, of)
    return weights if path.suffix == _UNORDERED else by_order(module.state_dict(), weights, source)


def by_order(known: Mapping[str, Tensor], weights: Mapping[str, Tensor], source: Path | str) -> Mapping[str, Tensor]:
    """The weights by the names of a module whose tensors agree with theirs in order, shape and kind, not in name.

    Their last two may be a classifier that the module lacks. Weights by other names than these are returned as they
    are, to be refused, and so are those that go by the module's names.
    """
    named = named_as(known, weights)
    pairs = list(zip(known, named, strict=False))
    left = list(named)[len(pairs) :]
    kinds_left = [name.rpartition(".")[2] for name in left]
    agree = len(pairs) == len(known) and kinds_left in ([], ["weight"], ["weight", "bias"])
    if not agree or known.keys() <= named.keys():
        return weights
    if any(named[b].shape != known[a].shape or a.rpartition(".")[2] != b.rpartition(".")[2] for a, b in pairs):
        return weights
    # A name of both that would change its meaning tells of another order.
    if any(a != b and (a in named or b in known) for a, b in pairs):
        return weights
    _say_by_order(str(source), pairs[0])
    return {a: named[b] for a, b in pairs}


@cache
def _say_by_order(source: str, first: tuple[str, str]) -> None:
    """Once for each file, however many students start from it, and whatever processes work beside this one."""
    if multiprocessing.parent_process() is not None:
        return
    ours, theirs = first
    _LOG.warning(
        "%s: the tensors are named otherwise than the tower's (%s for %s, …), but agree in order and shape throughout; "
        "loaded by order",
        *(source, theirs, ours),
    )


def _count(layers: Sized) -> str:
    return "one such tensor" if len(layers) == 1 else f"{len(layers)} such tensors"


def _first(names: Iterable[str]) -> str:
    """Three of the names, to be shown."""
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def read_weights(path: Path, of: str) -> Mapping[str, Tensor]:
    """The tensors of a state dict, as safetensors or as torch.save writes them, alone or in a training checkpoint.

    Raises InputError where there is none, or a file that is damaged, would run code or is a pointer of Git LFS.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected weights of {of}, found no such file; check the path")
    refuse_pointer(path, f"weights of {of}")
    loaded: Any = files.read_tensors(path) if path.suffix == _UNORDERED else load_published(path)
    while isinstance(loaded, Mapping):
        inner = next((loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)), None)
        if inner is None:
            return {k: v for k, v in loaded.items() if isinstance(v, Tensor)}
        loaded = inner
    return {}


def refuse_pointer(path: Path, expected: str) -> None:
    """Raises InputError for a file that Git LFS left a pointer in place of."""
    with open(path, "rb") as file:
        if kinds.kind_of(file.read(kinds.HEAD)) == kinds.LFS_POINTER:
            raise InputError(f"{path}: expected {expected}, found {kinds.LFS_POINTER}; fetch it with git lfs pull")


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names and values of a state dict."""
    parts = (f"{k}:{files.sha256(v.cpu().contiguous().numpy().tobytes())}" for k, v in weights.items())
    return files.sha256("\n".join(parts).encode())
