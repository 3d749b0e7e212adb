"""What folders of sentence-transformers, and the hub's models of that kind, ask for beside their model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ptmst.errors import InputError


@dataclass(frozen=True)
class Pooling:
    """How the last layer's tokens of a caption become an embedding."""

    tokens: Literal["cls", "mean", "max", "mean_sqrt_len"] = "cls"
    normalized: bool = False
    lower: bool = False
    """Whether captions are made lower-case first."""
    length: int | None = None
    """Most tokens that are read."""
    folder: str = ""
    """Where the model itself is, below the folder that says this."""

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """States [B, tokens, D] and which of them are a caption's [B, tokens] → [B, D]."""
        if self.tokens == "cls":
            pooled = states[:, 0]
        elif self.tokens == "max":
            pooled = states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
        else:
            count = mask.sum(1, keepdim=True).clamp(min=1).to(states)
            total = (states * mask[..., None].to(states)).sum(1)
            pooled = total / (count if self.tokens == "mean" else count.sqrt())
        return F.normalize(pooled, dim=1) if self.normalized else pooled


def pooling_of(name: str) -> Pooling:
    """What a folder of sentence-transformers asks for; the first token where it is none.

    Raises InputError for a part that is not known, and where the hub cannot be asked.
    """
    modules = _json_of(name, "modules.json")
    if not modules:
        return Pooling()
    steps = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    kinds = dict(steps)
    if unknown := kinds.keys() - set(_MODULES):
        raise InputError(
            f"text_tower hf:{name}: expected a model, pooling and normalization, found {min(unknown)} too, without "
            "which its embeddings are others; choose another"
        )
    order = [_MODULES[kind] for kind, _ in steps]
    if order != sorted(set(order)) or order[0] != 0:
        raise InputError(
            f"text_tower hf:{name}: expected a model, then pooling, then normalization, found "
            f"{', '.join(kind for kind, _ in steps)} (modules.json); choose another"
        )
    folder = steps[0][1]
    abouts = (_json_of(name, f"{folder}/{file}".lstrip("/")) for file in _ABOUT)
    about: Mapping[str, Any] = next((about for about in abouts if about is not None), {})
    if (_json_of(name, "config_sentence_transformers.json") or {}).get("default_prompt_name"):
        raise InputError(
            f"text_tower hf:{name}: expected captions to be embedded as they are, found a prompt before each "
            "(config_sentence_transformers.json); choose another"
        )
    asked = _json_of(name, f"{kinds['Pooling']}/config.json") if "Pooling" in kinds else {"pooling_mode": "cls"}
    modes = _modes(asked or {})
    if len(modes) != 1 or modes[0] not in _MODES:
        raise InputError(
            f"text_tower hf:{name}: expected one pooling of {', '.join(sorted({*_MODES.values()}))}, found "
            f"{' and '.join(modes) or 'none'}; choose another"
        )
    length = about.get("max_seq_length")
    return Pooling(_MODES[modes[0]], "Normalize" in kinds, bool(about.get("do_lower_case")), length, folder)


def _modes(asked: Mapping[str, Any]) -> list[str]:
    """Every pooling that is on, known or not: `pooling_mode` (one, or a list) goes before a switch for each."""
    if named := asked.get("pooling_mode"):
        return [named] if isinstance(named, str) else [str(mode) for mode in named]
    return [key.removeprefix("pooling_mode_") for key, on in asked.items() if key.startswith("pooling_mode_") and on]


_MODULES = {"Transformer": 0, "CLIPModel": 0, "Pooling": 1, "Normalize": 2}
"""Of sentence-transformers, by their place; the first two are models."""
_ABOUT = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""Where sentence-transformers looks for a model's length and case, in this order; all but the first are of old ones."""
_MODES: dict[str, Any] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}


def _json_of(name: str, file: str) -> Any:
    """A JSON file of a folder or of the hub; None where there is none.

    Raises InputError where the hub cannot be asked and did not say before.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(name).is_dir():
        path = Path(name, file)
        return json.loads(path.read_bytes()) if path.is_file() else None
    try:
        return json.loads(Path(huggingface_hub.hf_hub_download(name, file)).read_bytes())
    except LocalEntryNotFoundError as error:  # it cannot be asked, but may have said before that there is none
        if huggingface_hub.try_to_load_from_cache(name, file) is huggingface_hub._CACHED_NO_EXIST:
            return None
        raise InputError(
            f"text_tower hf:{name}: expected a folder or a model of the hub, found no such folder, and the hub cannot "
            f"be asked whether its model has {file}, which decides an embedding; load it once where the hub can be "
            f"asked (HF_HUB_OFFLINE unset), or fetch it whole (hf download {name} --local-dir FOLDER) and name "
            "hf:FOLDER"
        ) from error
    except EntryNotFoundError:
        return None
