"""Distilled sets in the forms that other code reads and writes."""

from __future__ import annotations

import csv
import importlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ptmst import config as configs
from ptmst import files
from ptmst.config import ImportConfig
from ptmst.data import MEAN, STD, renormalise
from ptmst.distilled import DistilledPhase, DistilledSet
from ptmst.errors import InputError
from ptmst.legacy import set_settings
from ptmst.similarity import FullSimilarity, LowRankSimilarity, Similarity
from ptmst.synthetic import SyntheticPairs

Form = Literal["ptm-st", "lors", "folder", "hf"]
RESIDUAL = 1e-3
"""A published matrix may differ from its own factors by this much, relative to its norm."""
_PARQUET = "data/train-00000-of-00001.parquet"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
_GET_ANEW = "get a published distilled set anew"

_Files = Iterator[tuple[str, bytes]]


def export(distilled: DistilledSet, out: Path, form: Form) -> list[Path]:
    """Write a distilled set into the new or empty folder `out`; returns the files. The same set gives the same bytes.

    - `ptm-st`: `distilled_PHASE_STEPS.pt` for every phase, counted from 0: the published dictionary with `image`
      [N, 3, H, W] (normalised with CLIP's mean and deviation), `text` [N, D], `similarity_params` ([S] or [a, L, R]),
      `similarity_mat` [N, N] and `syn_lr_img`, `syn_lr_txt`, the η without averaging that the published evaluation
      uses (METHOD §5).
    - `lors`: the same of a set with one phase, as `distilled_STEPS.pt`.
    - `folder`: `phase-1/000.png`, …, with captions in `captions.csv`.
    - `hf`: one Parquet file and a data card, which Hugging Face datasets reads.

    Raises InputError, before anything is written, for a folder that holds something, leaves that are not finite, a
    set that the form has no place for, and a package that is missing; and where `out` cannot be written.
    """
    writers: dict[str, Callable[[DistilledSet], _Files]] = {
        "ptm-st": _ptm_st,
        "lors": _lors,
        "folder": _folder,
        "hf": _hf,
    }
    if form not in writers:
        raise InputError(f"form: expected {', '.join(writers)}, found {form!r}; choose one of them")
    try:
        held = min((path.name for path in out.iterdir()), default=None) if out.exists() else None
    except OSError as error:
        raise InputError(
            f"{out}: expected a new or empty folder, found what is none ({error.strerror}); choose another"
        ) from error
    if held is not None:
        raise InputError(f"{out}: expected a new or empty folder, found {held} in it; choose another or empty it")
    for number, phase in enumerate(distilled.phases, start=1):
        for name, leaf in {**phase.pairs.leaves(), "last_lr": phase.last_lr}.items():
            if not bool(torch.isfinite(leaf).all()):
                raise InputError(
                    f"phase {number}: expected finite {name}, found NaN or infinity, and wrote nothing; distil anew"
                )
    written: list[Path] = []
    try:
        for name, content in writers[form](distilled):
            written.append(out / name)
            files.write(out / name, content)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # it is `out`, or holds something still
                path.parent.rmdir()
        raise
    return written


def _ptm_st(distilled: DistilledSet) -> _Files:
    for number, phase in enumerate(distilled.phases, start=1):
        _check_groups(number, phase)
    for number, phase in enumerate(distilled.phases):
        yield f"distilled_{number}_{_steps(phase)}.pt", _published(distilled, phase)


def _lors(distilled: DistilledSet) -> _Files:
    if len(distilled) != 1:
        raise InputError(f"lors: expected a set of one phase, found {len(distilled)} phases; export it as ptm-st")
    _check_groups(1, distilled.phases[0])
    yield f"distilled_{_steps(distilled.phases[0])}.pt", _published(distilled, distilled.phases[0])


def _check_groups(number: int, phase: DistilledPhase) -> None:
    if phase.last_lr.shape != (2,):
        raise InputError(
            f"phase {number}: expected a learning rate of two groups, image and text, found "
            f"{list(phase.last_lr.shape)}; export it as folder or hf"
        )


def _steps(phase: DistilledPhase) -> int:
    return len(phase.history["loss"]) if "loss" in phase.history else 0


def _published(distilled: DistilledSet, phase: DistilledPhase) -> bytes:
    similarity = phase.pairs.similarity
    image, text = phase.last_lr
    content = {
        # Published code normalises real images with CLIP's mean and deviation, whatever the tower.
        "image": _own(renormalise(phase.pairs.images, distilled.normalisation, (MEAN, STD))),
        "text": _own(phase.pairs.texts),
        "similarity_params": [_own(leaf) for leaf in similarity.leaves().values()],
        "similarity_mat": _own(similarity.dense()),
        "syn_lr_img": _own(image),
        "syn_lr_txt": _own(text),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _own(tensor: Tensor) -> Tensor:
    # torch.save writes all the memory that a view looks into.
    return tensor.detach().to("cpu", torch.float32).clone(memory_format=torch.contiguous_format)


def _folder(distilled: DistilledSet) -> _Files:
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(("file", "phase", "caption"))
    for number, name, picture, caption, _ in _rows(distilled):
        rows.writerow((name, number, caption))
        yield name, picture
    yield "captions.csv", table.getvalue().encode()
    readme = (
        f"{distilled.num_pairs:,} synthetic image-text pairs in {len(distilled)} phases, distilled with ptmst.\n"
        "phase-N/*.png are the images; captions.csv names the real caption nearest to each synthetic text.\n"
        "Texts, soft labels and learning rates are left out: a student trains on the set itself, not on this folder.\n"
    )
    yield "README.md", readme.encode()


def _rows(distilled: DistilledSet) -> Iterator[tuple[int, str, bytes, str, Tensor]]:
    """Phase from 1, file name, PNG, caption and text [D] of each pair."""
    for number, phase in enumerate(distilled.phases, start=1):
        pairs = zip(distilled.pixels(number - 1), phase.captions, phase.pairs.texts, strict=True)
        for i, (image, caption, text) in enumerate(pairs):
            yield number, f"phase-{number}/{i:03}.png", _png(image), caption, text


def _png(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rearrange(pixels, "c h w -> h w c").cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _hf(distilled: DistilledSet) -> _Files:
    try:
        # Through importlib, since mypy finds no types in it.
        pa, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError("hf: expected the package pyarrow, found none; pip install 'ptmst[hf]'") from error
    features = {
        "image": {"_type": "Image"},
        "caption": {"dtype": "string", "_type": "Value"},
        "phase": {"dtype": "int32", "_type": "Value"},
        "text_embedding": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
    }
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("caption", pa.string()),
            ("phase", pa.int32()),
            ("text_embedding", pa.list_(pa.float32())),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows = [
        {
            "image": {"bytes": picture, "path": name},
            "caption": caption,
            "phase": number,
            "text_embedding": text.detach().float().cpu().numpy(),
        }
        for number, name, picture, caption, text in _rows(distilled)
    ]
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer)
    yield _PARQUET, buffer.getvalue()
    yield "README.md", _card(distilled).encode()


def _card(distilled: DistilledSet) -> str:
    size = next((name for most, name in _SIZES if distilled.num_pairs < most), "100K<n<1M")
    told = ("method", "seed", "store_sha256", "files", "versions")
    provenance = {key: distilled.provenance[key] for key in told if key in distilled.provenance}
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {_PARQUET}
task_categories:
- image-text-retrieval
size_categories:
- {size}
---

# Distilled image-text pairs

{distilled.num_pairs:,} synthetic pairs in {len(distilled)} phases, distilled with ptmst for training retrieval models.

| column | what it is |
|---|---|
| `image` | the synthetic image, rounded to 8 bits |
| `caption` | the real training caption nearest to the synthetic text, for people to read |
| `phase` | the phase the pair belongs to, from 1: students train on one after the other |
| `text_embedding` | the synthetic text, as the frozen text encoder would give it |

Soft labels and student learning rates are left out.

Provenance:

```json
{json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False)}
```
"""


def import_distilled(
    paths: Sequence[Path],
    settings: Mapping[str, Any],
    captions: Callable[[Tensor], tuple[str, ...]] | None = None,
) -> DistilledSet:
    """Read published `.pt` files, one for each phase in order, as a set for students of `settings`.

    A file holds what `export` writes as `ptm-st`; other keys are ignored, rates may be floats, and either of
    `similarity_params` and `similarity_mat` may be missing. The alpha of low-rank soft labels is in no file: it is
    fitted to the matrix, and 1 where that is missing or R is zero. The one η of a file is taken for both `lr` and
    `last_lr` (METHOD §5). `captions` gives N captions for texts [N, D]; without it they are empty.

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
        found = captions(pairs.texts) if captions else ("",) * len(pairs)
        phases.append(DistilledPhase(pairs, pairs.lr.clone(), found))
    return DistilledSet(tuple(phases), {"method": "imported", "files": hashes}, settings)


def import_set(config: ImportConfig) -> DistilledSet:
    """The published files of `config.distilled` as a distilled set, saved at `config.out`.

    Raises InputError for a file that is no such set, settings it does not fit, and a folder that is taken.
    """
    configs.check(config)
    with files.claimed(Path(config.out), "a distilled set", fresh=True):
        found = import_distilled(config.distilled, *set_settings(config))
        found.save(config.out)
    return found


def _dictionary(path: Path, content: bytes) -> dict[Any, Any]:
    content = _checked(path, content)
    try:
        found = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # on a pickle of somebody else's making torch raises nearly anything
        raise InputError(
            f"{path}: expected a dictionary of tensors, found a pickle that asks for more, none of which was run; "
            f"{_GET_ANEW}"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a dictionary of tensors, found {type(found).__name__}; {_GET_ANEW}")
    return found


def _checked(path: Path, content: bytes) -> bytes:
    """A file of torch.save, each entry compared with its CRC and packed anew.

    torch compares none; packed anew, it reads the entries that were compared, however oddly they lay in the file.
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
            f"{path}: expected a whole file of torch.save, found a damaged file or another kind; {_GET_ANEW}"
        ) from error
    return buffer.getvalue()


def _pairs(path: Path, found: dict[Any, Any]) -> SyntheticPairs:
    images = _tensor(path, "image", _value(found, "image"), "N", 3, "H", "W")
    n = len(images)
    texts = _tensor(path, "text", _value(found, "text"), n, "D")
    similarity = _similarity(path, found, n)
    lr = torch.stack([_rate(path, name, _value(found, name)) for name in ("syn_lr_img", "syn_lr_txt")])
    return SyntheticPairs(images, texts, similarity, lr)


def _similarity(path: Path, found: dict[Any, Any], n: int) -> Similarity:
    params, matrix = (_value(found, name) for name in ("similarity_params", "similarity_mat"))
    if params is None and matrix is None:
        raise InputError(f"{path}: expected similarity_params or similarity_mat, found neither; {_GET_ANEW}")
    if matrix is not None:
        matrix = _tensor(path, "similarity_mat", matrix, n, n)
    if params is None:
        return FullSimilarity(matrix)
    if not isinstance(params, list | tuple) or len(params) not in (1, 3):
        count = len(params) if isinstance(params, list | tuple) else type(params).__name__
        raise InputError(f"{path}: expected a list of 1 or 3 tensors as similarity_params, found {count}; {_GET_ANEW}")
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
            f"nearest by {residual:.3g} of {norm:.3g}; {_GET_ANEW}"
        )
    return similarity


def _value(found: dict[Any, Any], name: str) -> Any:
    # A file may give an OrderedDict attributes, a `get` among them.
    return dict.get(found, name)


def _tensor(path: Path, name: str, value: Any, *shape: int | str) -> Tensor:
    """A float32 tensor of `shape`, where letters stand for any number from 1."""
    expected = f"{path}: expected {name} of shape [{', '.join(map(str, shape))}]"
    if value is None:
        raise InputError(f"{expected}, found none; {_GET_ANEW}")
    if not isinstance(value, Tensor):
        raise InputError(f"{expected}, found {type(value).__name__}; {_GET_ANEW}")
    if (
        value.layout != torch.strided
        or value.device.type != "cpu"
        or value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    ):
        raise InputError(f"{expected}, found {value.dtype}, {value.layout}, {value.device}; {_GET_ANEW}")
    # A file may give a parameter attributes, which would stand before its methods.
    tensor: Tensor = Tensor.detach(value)
    fits = len(tensor.shape) == len(shape) and all(
        size == wanted or (isinstance(wanted, str) and size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    # A tensor with strides of zero claims more than its file holds.
    if not fits or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{expected}, found {list(tensor.shape)}; {_GET_ANEW}")
    tensor = tensor.float().contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise InputError(f"{path}: expected finite {name}, found NaN or infinity; {_GET_ANEW}")
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
