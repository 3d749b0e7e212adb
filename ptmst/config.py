"""Every setting of the engine, as frozen dataclasses.

A field's docstring is its help text on the command line. `check` reports all mistakes of a config at once.
The defaults are the paper's (arXiv 2603.25388) where it names one, but for the adjoint (docs/adjoint.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    pass

Coding = Literal["fp16", "int8"]
LossKind = Literal["wbce", "bce", "infonce", "kl", "mse", "cwcl", "siglip"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "tf32", "bf16"]
Keep = Literal["nothing", "path", "primals"]
KeepOrAuto = Literal["auto", "nothing", "path", "primals"]
Chunk = int | Literal["auto"] | None
Compile = Literal["auto", "on", "off"]
Selection = Literal["random", "herding", "kcenter", "forgetting"]
"""Of real pairs."""
Rendered = Literal["scenes", "digits"]
Endpoints = tuple[int, ...] | Literal["all"]
Channels = tuple[float, float, float]

TEMPERATURE = 0.07
"""Divisor of the cosine similarities, as published."""
SMALLEST_IMAGE = 16
"""Pixels; below this, rendered shapes and digits are no longer told apart."""
MOST_CAPTIONS = 20
"""Captions of a rendered image that surely differ."""


@dataclass(frozen=True)
class RenderConfig:
    """A rendered data set, written to disk as image files and Karpathy-style JSON."""

    name: Rendered = "scenes"
    """scenes (coloured shapes) or digits (real handwriting)."""
    root: Path | None = None
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
    """Images for the warm-up of a tower, apart from all other splits."""
    captions: int = 5
    """Differently worded captions of each image."""
    seed: int = 0
    """Seed of every random draw."""

    @property
    def folder(self) -> Path:
        return self.root if self.root is not None else Path("data") / self.name

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, SMALLEST_IMAGE, "image_size")
        yield from _at_least(self, 1, "train", "val", "test", "captions")
        yield from _at_least(self, 0, "warmup", "seed")
        if self.captions > MOST_CAPTIONS:
            yield f"captions: expected at most {MOST_CAPTIONS}, found {self.captions}; lower it"


@dataclass(frozen=True)
class DataConfig:
    """Where the image-text pairs lie and how they are read."""

    name: str = "scenes"
    """Data set: scenes, digits, flickr8k, flickr30k, coco, cc3m, or csv:PATH, tsv:PATH, jsonl:PATH, wds:GLOB."""
    root: Path | None = None
    """Folder with the annotations and the images they name; none = data/NAME, for files of your own this folder."""
    image_size: int | None = None
    """Height and width that images are resized to, pixels; none = the image tower's own."""
    mean: Channels | None = None
    """Mean of red, green and blue in 0 … 1 that images are normalised with; none = the image tower's own."""
    std: Channels | None = None
    """Standard deviation of red, green and blue that images are normalised with; none = the image tower's own."""
    max_words: int = 30
    """Words kept of each caption."""

    @property
    def folder(self) -> Path:
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
    """The student: image tower, text tower and the heads on them."""

    image_tower: str = "convnet"
    """convnet (built in), timm:NAME for any timm model, or open_clip:NAME for an open_clip model's image tower."""
    image_width: int = 128
    """Channels of the convnet's last block; other towers have their own width."""
    image_weights: Path | None = None
    """Local weights of the image tower (.safetensors or a weights-only .pt); none = random, or warmed up."""
    freeze_tower: bool = False
    """Train heads only, on a frozen image tower (CC3M, RepBlend); otherwise the tower itself is trained."""
    head_width: int | None = None
    """Embedding width H of heads on a frozen tower; none = the tower's own, which it always is with a trained one."""
    text_tower: str = "hashed"
    """hashed (word and bigram hashing), hf:NAME_OR_FOLDER, or open_clip:NAME. Always frozen."""
    text_width: int = 256
    """Dimensions of the hashed text tower; other towers have their own width."""
    text_weights: Path | None = None
    """Local weights of an open_clip text tower."""
    warmup_epochs: int = 0
    """Epochs of warm-up on the data set's warmup split, a stand-in for pretrained weights; 0 = none."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "text_width")
        yield from _positive_or_none(self, "head_width")
        yield from _at_least(self, 4, "image_width")
        yield from _at_least(self, 0, "warmup_epochs")
        if self.image_weights is not None and self.warmup_epochs:
            yield "image_weights and warmup_epochs: expected one of them, found both; drop one"


def kept(endpoints: Endpoints, epochs: int) -> tuple[int, ...]:
    """The end points of a trajectory of so many epochs, in order."""
    return tuple(range(1, epochs + 1)) if endpoints == "all" else tuple(sorted(set(endpoints)))


@dataclass(frozen=True)
class TeachConfig:
    """Expert training on real pairs (paper §3; SGD without momentum)."""

    out: Path = Path("runs/store")
    """Folder of the trajectory store."""
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    experts: int = 20
    """Number of experts."""
    epochs: int = 10
    """Epochs each expert trains."""
    lr: float = 0.1
    """Learning rate of every group."""
    batch_size: int = 128
    """Real pairs per batch."""
    temperature: float = TEMPERATURE
    """Divisor of the cosine similarities."""
    endpoints: Endpoints = (5, 7, 10)
    """Epochs whose displacement is kept, or all (needed for raw trajectories); the last tells what real pairs teach."""
    coding: Coding = "fp16"
    """How displacements lie on disk: fp16 (relative error 2e-4) or int8 in blocks of 256 (7e-3, half the size)."""
    precision: Literal["fp32", "tf32"] = "fp32"
    """Arithmetic of warm-up and experts: fp32, or tf32 (CUDA only), which is faster and rounds to 10 bits."""
    seed: int = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where it runs; auto is CUDA where there is one."""

    @property
    def kept_endpoints(self) -> tuple[int, ...]:
        return kept(self.endpoints, self.epochs)

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "experts", "epochs", "lr", "batch_size", "temperature")
        yield from _at_least(self, 0, "seed")
        for k in self.kept_endpoints:
            if not 1 <= k <= self.epochs:
                yield f"endpoints: expected epochs in 1..{self.epochs}, found {k}; lower it or raise epochs"
        if not self.kept_endpoints:
            yield "endpoints: expected at least one epoch, found none; name some, such as 5,7"


@dataclass(frozen=True)
class ImportConfig:
    """Published replay buffers or distilled sets, and the encoder and data that they belong to."""

    out: Path = Path("runs/imported")
    """Folder of the trajectory store, or of the distilled set."""
    images: tuple[Path, ...] = ()
    """Buffers of the image tower, such as img_replay_buffer_*.pt."""
    texts: tuple[Path, ...] = ()
    """Buffers of the text head, in the same order."""
    networks: tuple[Path, ...] = ()
    """Instead: buffers of one network, such as MTT's replay_buffer_*.pt."""
    distilled: tuple[Path, ...] = ()
    """Instead: published distilled .pt files, one for each phase in order."""
    data: DataConfig = field(default_factory=DataConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    endpoints: Endpoints = "all"
    """Epochs whose displacement is kept, such as 5,7; or all (needed for raw trajectories)."""
    coding: Coding = "fp16"
    """How displacements lie on disk: fp16 (relative error 2e-4) or int8 in blocks of 256 (7e-3, half the size)."""

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
    """One phased teacher (paper §3.2): its subset, its end point and its start range."""

    pairs: int
    """Synthetic pairs N_p of this phase's subset."""
    endpoint: int
    """End point K_p of the shortcut, epochs; on raw trajectories the last epoch that is matched."""
    start: tuple[int, int]
    """Start range [first, last) of the matching spans, epochs."""


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
    """Outer learning rate of the soft labels S; 0 keeps the identity."""

    def scaled(self, factor: float) -> LeafRates:
        """All of them but η's times a factor, as they are tuned."""
        return LeafRates(self.images * factor, self.texts * factor, self.lr, self.similarity * factor)

    def problems(self) -> Iterator[str]:
        yield from _at_least(self, 0, "images", "texts", "lr", "similarity")


def gradient_problems(adjoint: float, adjoint_clip: float | None, keep: KeepOrAuto, chunk: Chunk) -> Iterator[str]:
    """What is wrong with how an outer step is to be taken."""
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


@dataclass(frozen=True)
class DistillConfig:
    """Phased distillation (paper §3; settings of Flickr30k 500 by default, but for the adjoint)."""

    out: Path | None = None
    """Folder of the distilled set and its checkpoints; none = nothing is written (Python API only)."""
    root: Path | None = None
    """Data folder, where it has moved since teaching; none = the folder recorded in the store."""
    phases: tuple[Phase, ...] = (Phase(200, 5, (0, 2)), Phase(299, 7, (1, 3)))
    """Phases as PAIRS:ENDPOINT:FIRST-LAST, such as 200:5:0-2 299:7:1-3 (last is exclusive)."""
    trajectory: Literal["shortcut", "raw"] = "shortcut"
    """What is matched: the shortcut to the phase's end point, or the epochs as they were."""
    expert_epochs: int = 1
    """Length Δ of a matching span, epochs."""
    steps: int = 2000
    """Outer steps of every phase."""
    inner_steps: int = 8
    """Student steps per outer step."""
    batch_size: int = 40
    """Synthetic pairs per student step."""
    loss: LossKind = "wbce"
    """Loss of the student."""
    temperature: float = TEMPERATURE
    """Divisor of the cosine similarities."""
    similarity: Literal["full", "low-rank"] = "full"
    """Form of the soft labels S."""
    rank: int = 10
    """Rank of low-rank soft labels."""
    alpha: float = 1.0
    """Weight of the low-rank part: S = diag(a) + (alpha/rank) L Rᵀ."""
    blend: float = 0.0
    """Blend each batch with a permutation of itself, by λ from Beta(blend, blend) (RepBlend: 1); 0 = not at all."""
    student_lr: float = 0.1
    """Initial student learning rate η of every group."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Outer optimiser."""
    momentum: float = 0.5
    """Momentum of sgd; first β of adam (its second is 0.99)."""
    rates: LeafRates = field(default_factory=LeafRates)
    adjoint: float = 0.5
    """Share of the adjoint recursion kept: 0 = truncated (the paper) … 1 = exact; chosen on small sets with Adam."""
    adjoint_clip: float | None = 1.0
    """Largest ‖λ_i‖/‖λ_n‖ per group; none = unclipped."""
    precision: Precision = "fp32"
    """Arithmetic of the student: fp32, tf32 (CUDA only), or bf16; parameters, matching and leaves stay float32."""
    keep: KeepOrAuto = "auto"
    """Kept of inner steps: nothing (slow), path (n parameter vectors), primals (activations, fast), auto (by room)."""
    chunk: Chunk = "auto"
    """Images in the tower at a time, a divisor of batch_size; none = the whole batch; auto = as many as fit."""
    compile: Compile = "auto"
    """Compile the outer step, once, for minutes with a big tower: auto = on CUDA only."""
    ema: float = 0.99
    """Decay of the averaged leaves, which are what is saved; 0 = the leaves themselves."""
    checkpoint_minutes: float = 3.0
    """Minutes between checkpoints."""
    seed: int = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where it runs; auto is CUDA where there is one."""

    @property
    def pairs(self) -> int:
        return sum(phase.pairs for phase in self.phases)

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "expert_epochs", "steps", "inner_steps", "batch_size", "temperature", "rank")
        yield from _positive(self, "student_lr")
        yield from _at_least(self, 0, "blend", "momentum", "ema", "checkpoint_minutes", "seed")
        if not self.phases:
            yield "phases: expected at least one, found none; name one, such as 99:5:0-2"
        yield from _below(self, 1, "momentum", "ema")
        yield from gradient_problems(self.adjoint, self.adjoint_clip, self.keep, self.chunk)
        if isinstance(self.chunk, int) and self.chunk > 0 and self.batch_size % self.chunk:
            yield f"chunk: expected a divisor of batch_size {self.batch_size}, found {self.chunk}; name one"
        for i, phase in enumerate(self.phases):
            first, last = phase.start
            if not 0 <= first < last:
                yield f"phases[{i}].start: expected 0 <= first < last, found {first}-{last}; mend the range"
            elif last - 1 + self.expert_epochs > phase.endpoint:
                yield (
                    f"phases[{i}]: expected the last span {last - 1}→{last - 1 + self.expert_epochs} to end by the "
                    f"end point, found end point {phase.endpoint}; raise it or lower the start range"
                )
            if phase.pairs < self.batch_size:
                yield (
                    f"phases[{i}].pairs: expected at least one batch of {self.batch_size}, found {phase.pairs} "
                    "pairs; lower batch_size or raise pairs"
                )


@dataclass(frozen=True)
class EvaluateConfig:
    """Training of fresh students on a distilled set, and their retrieval recall (docs/method.md §6)."""

    root: Path | None = None
    """Data folder, where it has moved since distillation; none = the folder recorded in the set."""
    students: int = 5
    """Fresh students, each with its own seed."""
    student: str | None = None
    """Image tower of the students, as encoder.image_tower, its mean and std too; none = the set's own."""
    student_weights: Path | None = None
    """Local weights of that tower; none = random, or warmed up as the set's own tower was."""
    together: int | None = None
    """Students trained as one stack; none = as many as fit on CUDA; on a CPU one, or all behind a frozen tower."""
    protocol: Literal["per-phase", "reference"] = "per-phase"
    """per-phase restarts optimiser and schedule in every phase; reference lets one span all of them."""
    split: Literal["test", "val"] = "test"
    """Split that the students are scored on; val is for choosing settings."""
    select: Literal["last", "best-val", "best-test"] = "last"
    """Which evaluation counts: the last, the best on val, or the best on the scored split (as published)."""
    epochs: int = 100
    """Epochs 0 … epochs per phase, so one more than this number."""
    lr_drop: int = 50
    """The learning rate falls to a tenth after this epoch."""
    every: int = 10
    """Epochs between evaluations."""
    batch_size: int = 128
    """Pairs per student batch."""
    momentum: float = 0.9
    """Momentum of the student's SGD."""
    weight_decay: float = 5e-4
    """Weight decay of the student's SGD."""
    loss: LossKind | None = None
    """Loss of the student; none = the one that the set was distilled with, wbce where it was not distilled."""
    temperature: float | None = None
    """Divisor of the cosine similarities; none = the set's own, of real pairs that of their experts."""
    seed: int = 0
    """Seed of every random draw."""
    device: Device = "auto"
    """Where it runs; auto is CUDA where there is one."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "students", "every", "batch_size")
        yield from _positive_or_none(self, "temperature")
        if self.student_weights is not None and self.student is None:
            yield "student_weights: expected the tower they belong to, found none; name it with student"
        yield from _positive_or_none(self, "together")
        yield from _at_least(self, 0, "epochs", "lr_drop", "momentum", "weight_decay", "seed")
        yield from _below(self, 1, "momentum")


TUNING_SEEDS = (1000, 1001)
"""Of the experts, pairs and students that an ablation's rates are tuned on."""


@dataclass(frozen=True)
class AblateConfig:
    """A grid of methods, sizes and seeds on a rendered data set."""

    out: Path = Path("runs/ablation")
    """Folder for data, experts and results, where a stopped grid continues."""
    data: Rendered = "scenes"
    """Embedded data set."""
    methods: tuple[str, ...] = ("random", "herding", "kcenter", "forgetting", "lors", "st", "ptm", "ptm-st")
    """Methods (see `ptmst presets`), and selections of real pairs: random, herding, kcenter, forgetting."""
    pairs: tuple[int, ...] = (20, 50, 100)
    """Sizes of the sets."""
    seeds: int = 5
    """Seeds: each has its own experts, initial pairs, batches and students."""
    seed: int = 0
    """The first of them."""
    preset: str = "ablation"
    """Preset of the other settings."""
    workers: int = 2
    """Runs at once, a process of one thread each."""

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "seeds", "workers")
        yield from _at_least(self, 0, "seed")
        for seed in TUNING_SEEDS:
            if self.seed <= seed < self.seed + self.seeds:
                yield f"seed: expected seeds without {seed}, on which rates are tuned, found it; choose another"
        for name in ("methods", "pairs"):
            if not getattr(self, name):
                yield f"{name}: expected at least one, found none; name some"
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                yield f"{name}: expected each once, found one twice; drop it"


@dataclass(frozen=True)
class Experiment:
    """A TOML file: one table per command, each with the settings of that command."""

    about: str = ""
    """What it is, in a line."""
    source: str = ""
    """Where its settings come from."""
    data: RenderConfig = field(default_factory=RenderConfig)
    """Settings of `ptmst data`."""
    teach: TeachConfig = field(default_factory=TeachConfig)
    """Settings of `ptmst teach`."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Settings of `ptmst distill`."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Settings of `ptmst evaluate`."""


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
