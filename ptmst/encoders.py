"""Image towers, frozen text towers, the heads on them, and the student they make."""

from __future__ import annotations

import difflib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, sqrt
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ptmst import files, kernels
from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.flat import Student
from ptmst.seeds import seeded


class ConvNet(nn.Module):
    """Three blocks of convolution, group norm, SiLU and pooling: [B, 3, H, W] → [B, 4·width]. Quick on a CPU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        channels = (3, width // 4, width // 2, width)
        blocks: list[nn.Module] = []
        for before, after in pairwise(channels):
            blocks += [
                nn.Conv2d(before, after, 3, padding=1),
                nn.AvgPool2d(2),
                nn.GroupNorm(gcd(after, max(1, after // 16)), after),
                nn.SiLU(),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.pool(self.blocks(images))
        return features.flatten(1)


class ProjectionHead(nn.Module):
    """projection → GELU → fc → + projection → LayerNorm: [B, D] → [B, H]. No dropout (METHOD §4)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, out)
        self.gelu = nn.GELU()
        self.fc = nn.Linear(out, out)
        self.norm = nn.LayerNorm(out)

    def forward(self, embeds: Tensor) -> Tensor:
        projected = self.projection(embeds)
        out: Tensor = self.norm(self.fc(self.gelu(projected)) + projected)
        return out


def image_tower(
    config: EncoderConfig, image_size: int, weights: Mapping[str, Tensor] | None = None
) -> tuple[nn.Module, int]:
    """The image tower with its start weights, and its feature width. Randomly initialised towers always start alike.

    `weights` (a warmed-up tower's, say) go before `config.image_weights`. Raises InputError for a name timm does not
    know, for weights that do not fit and for images of a size the tower does not take.
    """
    kind, _, name = config.image_tower.partition(":")
    with seeded(0, "tower"):
        if config.image_tower == "convnet":
            tower: nn.Module = ConvNet(config.image_width)
        elif kind == "timm":
            tower = _timm_tower(name)
        elif kind == "open_clip":
            tower = OpenClipImages(name)
        else:
            raise InputError(
                f"image_tower: expected convnet, timm:NAME or open_clip:NAME, found {config.image_tower}; mend the name"
            )
    if weights is not None:
        load_weights(tower, weights, "warmed-up tower")
    elif config.image_weights is not None:
        load_weights(tower, _read_weights(config.image_weights), config.image_weights)
    # Norms with running statistics stay frozen: with batch statistics the loss would be no function of θ alone.
    tower.eval()
    try:
        with torch.no_grad():
            features = tower(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InputError(
            f"image_tower {config.image_tower}: does not take images of {image_size}×{image_size} "
            f"({str(error).splitlines()[0]}); set data.image_size to the tower's own"
        ) from error
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else f"{len(features)} outputs"
        raise InputError(f"image_tower {config.image_tower}: expected features [B, H], found {found}; choose another")
    return tower, features.shape[1]


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Path | str) -> None:
    """Load a state dict; layers of a classifier that the module lacks are passed over, missing ones refused."""
    known = module.state_dict()
    wrong = [k for k, v in known.items() if k not in weights or weights[k].shape != v.shape]
    if wrong:
        found = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "nothing"
        raise InputError(
            f"{source}: expected weights of this tower, found {found} for {wrong[0]} {tuple(known[wrong[0]].shape)} "
            f"({len(wrong)} such layers); name the tower these weights belong to"
        )
    module.load_state_dict({k: weights[k] for k in known})


def make_student(
    config: EncoderConfig,
    image_size: int,
    text_width: int,
    draw: tuple[int | str, ...],
    tower_weights: Mapping[str, Tensor] | None = None,
) -> Student:
    """A fresh student: the image tower at the start all students share, and heads of this `draw` (seeds.py).

    With a trained tower θ is the tower and a text head; with a frozen one it is an image head and a text head
    (METHOD §1, a and b).
    """
    tower, width = image_tower(config, image_size, tower_weights)
    with seeded("heads", *draw):
        if not config.freeze_tower:
            return Student.from_modules(tower, ProjectionHead(text_width, width))
        image_head = ProjectionHead(width, config.head_width)
        return Student.from_modules(image_head, ProjectionHead(text_width, config.head_width), tower=tower)


class TextTower(Protocol):
    """A frozen text encoder."""

    @property
    def width(self) -> int:
        """D, the width of its embeddings."""

    @property
    def fingerprint(self) -> str:
        """Names the tower with its weights."""

    def embed(self, captions: Sequence[str]) -> Tensor:
        """T captions → float32 [T, D]."""


def text_tower(config: EncoderConfig) -> TextTower:
    """The frozen text tower of a config. Raises InputError for a name that is none, or weights that do not fit."""
    kind, _, name = config.text_tower.partition(":")
    if config.text_tower == "hashed":
        return HashedText(config.text_width)
    if kind == "hf":
        return HuggingFaceText(name)
    if kind == "open_clip":
        return OpenClipText(name, config.text_weights)
    raise InputError(
        f"text_tower: expected hashed, hf:NAME or open_clip:NAME, found {config.text_tower}; mend the name"
    )


@dataclass(frozen=True)
class HashedText:
    """Words and bigrams hashed to D signed counts, scaled to norm √D: no weights, no download."""

    width: int

    @property
    def fingerprint(self) -> str:
        return f"hashed:{self.width}"

    def embed(self, captions: Sequence[str]) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        counts = HashingVectorizer(n_features=self.width, ngram_range=(1, 2), norm="l2").transform(captions)
        embeds: Tensor = torch.from_numpy(counts.toarray()).float()
        return embeds * sqrt(self.width)


class HuggingFaceText:
    """A transformers encoder from the hub or a local folder; an embedding is the last layer's first token (CLS)."""

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise InputError("text_tower hf: expected transformers, found none; pip install 'ptmst[hf]'") from error
        try:
            # Layers that the weights lack, such as a pooler, are drawn: alike each time, for the fingerprint's sake.
            with own_kernels_hidden(), seeded(0, "text tower"):
                self._tokenizer = AutoTokenizer.from_pretrained(name)
                self._model = AutoModel.from_pretrained(name).eval()
        except (OSError, ValueError, SafetensorError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"text_tower hf:{name}: cannot be loaded ({reason}); name a model or a folder") from error
        self.width = int(self._model.config.hidden_size)
        self.fingerprint = f"hf:{weights_hash(self._model)}"

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        parts = []
        for first in range(0, len(captions), 256):
            chunk = list(captions[first : first + 256])
            tokens = self._tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
            parts.append(self._model(**tokens).last_hidden_state[:, 0].float())
        return torch.cat(parts)


class OpenClipText:
    """The text tower of an open_clip model, with local weights or randomly initialised."""

    def __init__(self, name: str, weights: Path | None) -> None:
        import open_clip

        if name not in open_clip.list_models():
            raise InputError(f"text_tower open_clip:{name}: unknown model{_nearest(name, open_clip.list_models())}")
        if weights is not None and not weights.is_file():
            raise InputError(f"text_weights: expected a file, found none at {weights}; check the path")
        try:
            with own_kernels_hidden(), seeded(0, "text tower"):
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

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> Tensor:
        chunks = (list(captions[first : first + 256]) for first in range(0, len(captions), 256))
        return torch.cat([self._model.encode_text(self._tokenizer(chunk)).float() for chunk in chunks])


def embed_captions(tower: TextTower, captions: Sequence[str]) -> Tensor:
    """T captions → float32 [T, D], computed once per tower and captions and kept in the cache folder."""
    key = files.sha256(json.dumps([tower.fingerprint, *captions]).encode())
    path = files.cache_folder() / f"texts-{key[:32]}.safetensors"
    if path.exists():
        try:
            return files.read_tensors(path)["texts"]
        except InputError:
            path.unlink()
    texts = tower.embed(captions)
    try:
        files.write_tensors(path, {"texts": texts})
    except InputError as error:
        raise InputError(f"cache of text embeddings: {error}; $PTMST_CACHE names another folder") from error
    return texts


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of a module's parameters and buffers."""
    parts = (f"{k}:{files.sha256(v.cpu().contiguous().numpy().tobytes())}" for k, v in module.state_dict().items())
    return files.sha256("\n".join(parts).encode())


@contextmanager
def own_kernels_hidden() -> Iterator[None]:
    """Keep our folder `kernels`, on sys.path in an editable install, from transformers' look for a package so named."""
    found = importlib.util.find_spec("kernels") if "kernels" not in sys.modules else None
    if found is None or found.origin != kernels.__file__:
        yield
        return
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["kernels"]


def _timm_tower(name: str) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise InputError(f"image_tower timm:{name}: timm knows no such model{_nearest(name, timm.list_models())}")
    _plain_timm_attention()
    tower: nn.Module = timm.create_model(name, num_classes=0)
    return tower


class OpenClipImages(nn.Module):
    """The image tower of an open_clip model, randomly initialised, with its projection: [B, 3, H, W] → [B, H]."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import open_clip

        if name not in open_clip.list_models():
            raise InputError(f"image_tower open_clip:{name}: unknown model{_nearest(name, open_clip.list_models())}")
        _plain_timm_attention()  # of towers that open_clip takes from timm
        with own_kernels_hidden(), _no_warnings():
            self.visual: nn.Module = open_clip.create_model(name, load_weights=False, pretrained_text=False).visual

    def forward(self, images: Tensor) -> Tensor:
        # Fused attention has no forward-mode derivative; the plain form has.
        with sdpa_kernel(SDPBackend.MATH):
            features: Tensor = self.visual(images)
        return features


@contextmanager
def _no_warnings() -> Iterator[None]:
    """open_clip warns of random weights, where weights come later or are meant to be random."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _plain_timm_attention() -> None:
    """Fused attention has no forward-mode derivative; the plain form has."""
    import timm

    timm.layers.set_fused_attn(False)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(close)}?" if close else "; check the name"


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise InputError(f"image_weights: expected a file, found none at {path}; check the path")
    if path.suffix == ".safetensors":
        return files.read_tensors(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a file that holds no weights
        raise InputError(f"{path}: expected weights, found a file that holds more or is damaged; resave it") from error
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, dict) else {}
