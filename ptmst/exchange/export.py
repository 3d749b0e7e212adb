"""Distilled sets in the forms that other code reads."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ptmst.data import MEAN, STD, renormalize
from ptmst.data.credits import Credits
from ptmst.data.shipped import license_texts
from ptmst.data.written import LICENSES
from ptmst.errors import InputError
from ptmst.support import files, folders, parts
from ptmst.support.locks import CLAIM
from ptmst.synthetic.distilled_set import DistilledPhase, DistilledSet

Form = Literal["ptm-st", "lors", "folder", "hf"]
FOLDER = folders.Kind("an export")
_PARQUET = "data/train-00000-of-00001.parquet"
_GROUP = 100
"""Rows of a row group: what is read for one image."""
_HUB_LICENSES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odbl", "pddl", "unlicense",
}  # fmt: skip
"""SPDX identifiers, in lower case, that the hub knows by the same name."""
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))

_Files = Iterator[tuple[str, bytes]]


def export(distilled: DistilledSet, out: Path, form: Form) -> list[Path]:
    """Write a distilled set into the new or empty folder `out`; returns the files. The same set gives the same bytes.

    - `ptm-st`: `distilled_PHASE_STEPS.pt` for every phase, counted from 0: the published dictionary with `image`
      [N, 3, H, W] (normalized with CLIP's mean and deviation), `text` [N, D], `similarity_params` ([S] or [a, L, R]),
      `similarity_mat` [N, N] and `syn_lr_img`, `syn_lr_txt`, the η without averaging that the published evaluation
      uses (docs/method.md §5).
    - `lors`: the same of a set with one phase, as `distilled_STEPS.pt`.
    - `folder`: `phase-1/000.png`, …, with captions in `metadata.csv`: a Hugging Face imagefolder.
    - `hf`: one Parquet file of images and captions with a data card, which Hugging Face datasets reads, and beside
      them the set itself, which `DistilledSet.load` reads: float images, texts, soft labels, η.

    Where the data have credits, `README.md` tells them in every form. LICENSES.txt comes with sets of `emoji`.

    Raises InputError, before anything is written, for a folder that holds something, leaves that are not finite or
    features, a set that the form has no place for, a missing package; and where `out` cannot be written.
    """
    writers: dict[str, Callable[[DistilledSet], _Files]] = {
        "ptm-st": _ptm_st,
        "lors": _lors,
        "folder": _folder,
        "hf": _hf,
    }
    if form not in writers:
        raise InputError(f"form: expected {', '.join(writers)}, found {form!r}; choose one of them")
    _refuse_held(out)
    distilled.refuse_features(f"pictures to write as {form}")
    for number, phase in enumerate(distilled.phases, start=1):
        for name, leaf in {**phase.pairs.leaves(), "last_lr": phase.last_lr}.items():
            if not bool(torch.isfinite(leaf).all()):
                raise InputError(
                    f"phase {number}: expected finite {name}, found NaN or infinity, and wrote nothing; "
                    "run `ptmst distill` again"
                )
    try:
        # The parts lie beside `out`, which thus is empty, or whole, at every moment.
        with parts.folder(out.resolve()) as temporary, folders.claimed(out, FOLDER, fresh=True):
            _refuse_held(out)
            names = []
            for name, content in chain(writers[form](distilled), _notices(distilled, form)):
                files.write(temporary / name, content)
                names.append(name)
            if form == "hf":
                names += _saved(distilled, temporary)
    except OSError as error:
        raise files.cannot_write(out, error) from error
    return [out / name for name in names]


def _refuse_held(out: Path) -> None:
    try:
        held = min((path.name for path in out.iterdir() if path.name != CLAIM), default=None) if out.exists() else None
    except OSError as error:
        raise InputError(
            f"{out}: expected a new or empty folder, found what is none ({error.strerror}); choose another"
        ) from error
    if held is not None:
        raise InputError(f"{out}: expected a new or empty folder, found {held} in it; choose another or empty it")
    if out.exists() and out.samefile(Path.cwd()):
        raise InputError(f"{out}: expected a folder that can be replaced, found the current one; choose another")


def _ptm_st(distilled: DistilledSet) -> _Files:
    if distilled.is_progressive:
        raise InputError(
            "ptm-st: expected phases that students learn from one by one, found progressive ones, which build on each "
            "other; export it as hf"
        )
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
        # Published code normalizes real images with CLIP's mean and deviation, whatever the tower.
        "image": _own(renormalize(phase.pairs.images, distilled.normalization, (MEAN, STD))),
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
    rows.writerow(("file_name", "caption", "phase"))
    for number, name, picture, caption, _ in _rows(distilled):
        rows.writerow((name, caption, number))
        yield name, picture
    yield "metadata.csv", table.getvalue().encode()
    readme = (
        f"{distilled.num_pairs:,} synthetic image-text pairs in {len(distilled)} phases, distilled with ptmst.\n"
        "phase-N/*.png are the images; metadata.csv names the real caption nearest to each synthetic text.\n"
        "Texts, soft labels and learning rates are left out: a student trains on the set itself, not on this folder.\n"
    )
    yield "README.md", (readme + _credited(distilled)).encode()


def _rows(distilled: DistilledSet) -> Iterator[tuple[int, str, bytes, str, Tensor]]:
    """Phase from 1, file name, PNG, caption and text [D] of each pair."""
    for number, phase in enumerate(distilled.phases, start=1):
        columns = zip(distilled.pixels(number - 1), phase.captions, phase.pairs.texts, strict=True)
        for i, (image, caption, text) in enumerate(columns):
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
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer, row_group_size=_GROUP)
    yield _PARQUET, buffer.getvalue()
    yield "README.md", _card(distilled).encode()


def _saved(distilled: DistilledSet, folder: Path) -> list[str]:
    """The set itself, beside its Parquet file; returns the files."""
    before = {*folder.iterdir()}
    # Where things are on this machine is nobody else's affair.
    published = replace(distilled, settings=distilled.recipe.portable().to_json()) if distilled.settings else distilled
    published.save(folder)
    return sorted(path.name for path in {*folder.iterdir()} - before)


def _credits(distilled: DistilledSet) -> Credits | None:
    return distilled.recipe.credits if distilled.settings else None


def _notices(distilled: DistilledSet, form: Form) -> _Files:
    """What has to go with pictures that began as somebody's: credits where a form has no place for them, licenses."""
    credits = _credits(distilled)
    if credits is None:
        return
    if form in ("ptm-st", "lors"):
        readme = f"{distilled.num_pairs:,} synthetic image-text pairs, distilled with ptmst.\n"
        yield "README.md", (readme + _credited(distilled)).encode()
    if (texts := license_texts(credits)) is not None:
        yield LICENSES, texts.encode()


def _credited(distilled: DistilledSet) -> str:
    """Whose data the pairs were distilled from; empty where these do not tell."""
    credits = _credits(distilled)
    if credits is None:
        return ""
    works = "".join(f"* {line}\n" for line in credits.credits)
    changed = "The images began as real ones, and were changed."
    texts = "" if license_texts(credits) is None else f" {LICENSES} has all texts."
    return f"\n{changed} License of the data: {credits.license}.{texts} Credits:\n\n{works}"


def _license(credits: Credits | None) -> str:
    """Lines of the card's head, of which the hub takes what it knows."""
    if credits is None:
        return "license: unknown\n"
    known = credits.license.lower()
    if known in _HUB_LICENSES:
        return f"license: {known}\n"
    name = re.sub(r"[^a-z0-9.]+", "-", known).strip("-.") or "of-the-data"
    link = "README.md" if license_texts(credits) is None else LICENSES
    return f"license: other\nlicense_name: {name}\nlicense_link: {link}\n"


def _card(distilled: DistilledSet) -> str:
    credits = _credits(distilled)
    size = next((name for most, name in _SIZES if distilled.num_pairs < most), "100K<n<1M")
    told = ("method", "seed", "store_sha256", "files", "versions")
    provenance = {key: distilled.provenance[key] for key in told if key in distilled.provenance}
    order = "each together with those before it" if distilled.is_progressive else "one after the other"
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: {_PARQUET}
task_categories:
- image-to-text
- text-to-image
tags:
- image-text-retrieval
- dataset-distillation
- synthetic
size_categories:
- {size}
{_license(credits)}---

# Distilled image-text pairs

{distilled.num_pairs:,} synthetic pairs in {len(distilled)} phases, distilled with ptmst for training retrieval models.

| column | what it is |
|---|---|
| `image` | the synthetic image, rounded to 8 bits |
| `caption` | the real training caption nearest to the synthetic text, for people to read |
| `phase` | the phase the pair belongs to, from 1: students train on {order} |
| `text_embedding` | the synthetic text, as the frozen text encoder would give it |

`datasets.load_dataset` reads these columns. Students train on the set itself, which lies in `distilled.json` and the
tensors beside it: images that are not rounded, texts, soft labels and student learning rates.

```python
import huggingface_hub
import ptmst
import torch

folder = huggingface_hub.snapshot_download("OWNER/NAME", repo_type="dataset")
distilled = ptmst.DistilledSet.load(folder)
for batch in distilled.batches(None, torch.Generator().manual_seed(0)):
    batch.images, batch.texts, batch.similarity, batch.lr  # of a step: images and texts, soft labels, rates
```
{_credited(distilled)}
Provenance:

```json
{json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False)}
```
"""
