"""Frozen text towers, and captions as embeddings of theirs."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.students.image_towers import refuse_unknown_open_clip
from ptmst.support import devices, files, folders, progress
from ptmst.support.seeds import seeded

CPU = torch.device("cpu")
_AT_ONCE = 256
"""Captions."""


class TextTower(Protocol):
    """A frozen text encoder."""

    @property
    def width(self) -> int:
        """D, the width of its embeddings."""

    @property
    def fingerprint(self) -> str:
        """Names the tower with its weights."""

    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        """T captions → float32 [T, D] on the CPU; a tower that computes does so on `device`."""


def text_tower(config: EncoderConfig) -> TextTower:
    """The frozen text tower of a config. Raises InputError for a name that is none, or weights that do not fit."""
    kind, _, name = config.text_tower.partition(":")
    if config.text_tower == "hashed":
        return HashedText(config.text_width)
    if kind == "hf":
        return HuggingFaceText(name)
    if kind == "open_clip":
        return OpenClipText(name, config.text_weights)
    raise InputError(f"text_tower: expected hashed, hf:NAME or open_clip:NAME, found {config.text_tower}; fix the name")


@dataclass(frozen=True)
class HashedText:
    """Words and bigrams hashed to D signed counts, scaled to norm √D: no weights, no download."""

    width: int

    @property
    def fingerprint(self) -> str:
        return f"hashed:{self.width}"

    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts = HashingVectorizer(n_features=self.width, ngram_range=(1, 2), norm="l2").transform(captions)
        embeds: Tensor = torch.from_numpy(counts.toarray()).float()
        return embeds * sqrt(self.width)


class _TextModel(ABC):
    """A frozen text model of torch. It is on the CPU except while it embeds captions."""

    width: int
    _model: Any

    @torch.no_grad()
    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        embeds = torch.empty(len(captions), self.width)
        try:
            self._model.to(device)
            with devices.arithmetic("fp32"), progress.bar("embed captions", len(captions)) as bar:
                for some in chunks(captions, device):
                    embeds[some] = self._embed([captions[i] for i in some], device).float().to(CPU)
                    bar.advance(steps=len(some))
        finally:
            # What is trained next wants the device's memory.
            self._model.to(CPU)
        return embeds

    @abstractmethod
    def _embed(self, captions: list[str], device: torch.device) -> Tensor:
        """B captions → [B, D] on `device`, where the model is."""


def chunks(captions: Sequence[str], device: torch.device) -> list[list[int]]:
    """Captions, by their numbers, in chunks that are embedded at once.

    On a device those of a length go together, so that little is padded. On a CPU they stay in their order, which the
    bits of an embedding depend on, if on nothing else of it.
    """
    order = list(range(len(captions)))
    if device.type != "cpu":
        order.sort(key=lambda number: len(captions[number]), reverse=True)
    return [order[first : first + _AT_ONCE] for first in range(0, len(order), _AT_ONCE)]


class HuggingFaceText(_TextModel):
    """A transformers model from the hub or a local folder.

    An embedding is the last layer's first token (CLS) of an encoder such as BERT, and the projected text feature of a
    model of images and texts such as CLIP.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise InputError("text_tower hf: expected transformers, found none; pip install 'ptmst[hf]'") from error
        try:
            # Layers that the weights lack, such as a pooler, are drawn: alike each time, for the fingerprint's sake.
            with seeded(0, "text tower"):
                self._tokenizer = AutoTokenizer.from_pretrained(name)
                self._model = AutoModel.from_pretrained(name).eval()
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"text_tower hf:{name}: cannot be loaded ({reason}); name a model or a folder") from error
        self._has_images = hasattr(self._model, "get_text_features")
        config = self._model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        # A tokenizer saved without its model's length would pass captions on that are too long.
        self._length = min(self._tokenizer.model_max_length, positions) if positions else None
        self.width = self._probed_width(name)
        self.fingerprint = f"hf:{weights_hash(self._model)}"

    def _embed(self, captions: list[str], device: torch.device) -> Tensor:
        # SigLIP pools the last position, which must not depend on the other captions.
        padding = "max_length" if self._has_images else "longest"
        tokens = self._tokenizer(
            captions,
            padding=padding,
            truncation=True,
            max_length=self._length,
            # A caption is one text, for which models that tell two apart take zeros; others may know no such argument.
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(device)
        if not self._has_images:
            first: Tensor = self._model(**tokens).last_hidden_state[:, 0]
            return first
        output = self._model.get_text_features(**tokens)
        pooled: Tensor = getattr(output, "pooler_output", output)
        return pooled

    @torch.no_grad()
    def _probed_width(self, name: str) -> int:
        """D. Raises InputError where captions that begin alike are embedded alike, or none can be."""
        try:
            short, long = self._embed(["a photo", "a photo of two dogs"], CPU).float()
        except Exception as error:  # whatever a model makes of being called as another kind
            reason = str(error).splitlines()[0]
            raise InputError(
                f"text_tower hf:{name}: expected an encoder such as BERT or a model such as CLIP, found one that does "
                f"not embed a caption ({reason}); choose another"
            ) from error
        if torch.allclose(short, long, rtol=0, atol=1e-6):
            raise InputError(
                f"text_tower hf:{name}: expected an encoder whose first token sees the whole caption, found one that "
                f"reads from left to right ({self._model.config.model_type}); choose another"
            )
        return len(short)


class OpenClipText(_TextModel):
    """The text tower of an open_clip model, with local weights or randomly initialized."""

    def __init__(self, name: str, weights: Path | None) -> None:
        import open_clip

        refuse_unknown_open_clip("text", name)
        if weights is not None and not weights.is_file():
            raise InputError(f"text_weights: expected a file, found none at {weights}; check the path")
        try:
            with seeded(0, "text tower"):
                self._model = open_clip.create_model(name, pretrained=str(weights) if weights else None).eval()
        except Exception as error:  # torch.load and open_clip raise many kinds for a file of other weights, or of none
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{weights or name}: expected weights of open_clip:{name}, found a file that holds others or is "
                f"damaged ({reason}); name the model these weights belong to"
            ) from error
        self._tokenizer = open_clip.get_tokenizer(name)
        with torch.no_grad():
            self.width = int(self._model.encode_text(self._tokenizer(["a"])).shape[-1])
        self.fingerprint = f"open_clip:{name}:{weights_hash(self._model)}"

    def _embed(self, captions: list[str], device: torch.device) -> Tensor:
        embeds: Tensor = self._model.encode_text(self._tokenizer(captions).to(device))
        return embeds


def embed_captions(tower: TextTower, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
    """T captions → float32 [T, D] on the CPU, computed once, on `device`, and kept in the cache folder.

    Raises InputError where that folder cannot be written.
    """
    # Not by the device: what one computes differs from another's by rounding, and serves all.
    key = files.sha256(json.dumps([tower.fingerprint, *captions]).encode())
    path = folders.cache_folder() / f"texts-{key[:32]}.safetensors"
    if path.exists():
        try:
            return files.read_tensors(path)["texts"]
        except InputError:
            path.unlink()
    texts = tower.embed(captions, device)
    try:
        files.write_tensors(path, {"texts": texts})
    except InputError as error:
        raise InputError(f"cache of text embeddings: {error}; $PTMST_CACHE names another folder") from error
    return texts


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of a module's parameters and buffers."""
    parts = (f"{k}:{files.sha256(v.cpu().contiguous().numpy().tobytes())}" for k, v in module.state_dict().items())
    return files.sha256("\n".join(parts).encode())


def nearest_captions(texts: Tensor, real_texts: Tensor, captions: Sequence[str]) -> tuple[str, ...]:
    """The caption whose embedding has the largest cosine with each synthetic text: [N, D], [T, D], T captions."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(real_texts.cpu().numpy())
    nearest = search.kneighbors(texts.detach().cpu().numpy(), return_distance=False)
    return tuple(captions[i] for i in nearest[:, 0])
