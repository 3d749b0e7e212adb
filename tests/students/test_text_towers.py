"""Image towers, text towers and the embedding cache; nothing is downloaded and no pickle runs."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.utils.murmurhash import murmurhash3_32
from torch import Tensor

from oracles import relative_error
from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.students import text_towers
from ptmst.students.heads import make_student
from ptmst.students.image_towers import ConvNet, image_tower
from ptmst.students.text_towers import CPU, HashedText, HuggingFaceText, chunks, embed_captions, text_tower
from ptmst.support.folders import cache_folder
from tiny import tiny_bert

pytestmark = pytest.mark.slow  # open_clip and transformers take seconds to import

CONVNET = EncoderConfig(image_width=16, head_width=8)
CAPTIONS = ["a red star", "two green boxes beside one very large and rather dark blue ring", "star"]
Dump = Callable[[object, Path], object]


class Touch:
    """A pickle that does something as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def dump_pickle(value: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


def with_weights(path: Path) -> EncoderConfig:
    return replace(CONVNET, image_weights=path)


# Image towers


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:nfnet_10", "image_tower timm:nfnet_10: timm knows no such model; did you mean .*nfnet_l0"),
        ("timm:qqqqqqqq", "image_tower timm:qqqqqqqq: timm knows no such model; check the name"),
        ("resnet", "image_tower: expected convnet, timm:NAME or open_clip:NAME, found resnet; check the name"),
        ("nf_resnet50", "found nf_resnet50; did you mean timm:nf_resnet50"),
        ("ViT-B-32", "found ViT-B-32; did you mean open_clip:ViT-B-32"),
        ("timmy:nfnet_l0", "image_tower: expected convnet, timm:NAME or open_clip:NAME, found timmy:nfnet_l0"),
    ],
)
def test_an_unknown_image_tower_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_tower(EncoderConfig(image_tower=name), 32)


@pytest.mark.parametrize(("tower", "size"), [("timm:test_vit3", 8), ("timm:test_resnet", 0), ("convnet", 4)])
def test_images_of_another_size_are_refused(tower: str, size: int) -> None:
    message = rf"image_tower {tower}: does not take images of {size}×{size} \(.+\); choose one that does, or teach"
    with pytest.raises(InputError, match=message):
        image_tower(replace(CONVNET, image_tower=tower), size)


@pytest.mark.parametrize(("tower", "size", "width"), [("timm:test_vit", 160, 64), ("convnet", 33, 64)])
def test_features_have_the_width_that_is_told(tower: str, size: int, width: int) -> None:
    module, found = image_tower(replace(CONVNET, image_tower=tower), size)
    assert found == width and module(torch.randn(2, 3, size, size)).shape == (2, width)
    assert not any(part.training for part in module.modules())


def behind(*prefixes: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {f"{''.join(prefixes)}{name}": value for name, value in weights.items()}


WRITTEN: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": lambda weights: weights,
    "in a checkpoint": lambda weights: {"state_dict": weights, "epoch": 3},
    "under model": lambda weights: {"model": weights, "optimizer": {"state": {}, "lr": 0.1}},
    "under model twice": lambda weights: {"model": {"state_dict": weights}},
    "under model_state_dict": lambda weights: {"model_state_dict": weights, "loss": 0.5},
    "by DataParallel": behind("module."),
    "by torch.compile": behind("_orig_mod."),
    "by both": behind("module.", "_orig_mod."),
    "by both, otherwise": behind("_orig_mod.", "module."),
    "Lightning's": lambda weights: {"state_dict": behind("model.")(weights), "epoch": 3},
    "by Lightning and torch.compile": behind("model.", "_orig_mod."),
    "of a compiled part": lambda weights: {k.replace("blocks.", "blocks._orig_mod."): v for k, v in weights.items()},
}


@pytest.mark.parametrize(
    ("suffix", "way"),
    [(".pt", way) for way in WRITTEN] + [(".safetensors", way) for way in WRITTEN if way == "plain" or "by" in way[:2]],
)
def test_weights_are_loaded(tmp_path: Path, suffix: str, way: str) -> None:
    weights = {name: torch.randn_like(value) for name, value in ConvNet(16).state_dict().items()}
    written = WRITTEN[way](weights | {"classifier.weight": torch.zeros(3)})
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(written, path)
    else:
        save_file(written, path)
    module, _ = image_tower(with_weights(path), 16)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    other, _ = image_tower(with_weights(path), 16, {name: value + 1 for name, value in weights.items()})
    assert all(torch.equal(value, weights[name] + 1) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"blocks.0.weight": torch.zeros(8, 3, 3, 3)},
            r"found \(8, 3, 3, 3\) for blocks\.0\.weight \(4, 3, 3, 3\) \(one such tensor\)",
        ),
        ({"blocks.0.weight": None}, r"found nothing for blocks\.0\.weight \(4, 3, 3, 3\) \(one such tensor\)"),
    ],
)
def test_weights_of_another_tower_are_refused(
    tmp_path: Path, change: Mapping[str, Tensor | None], message: str
) -> None:
    changed = {**ConvNet(16).state_dict(), **change}
    path = tmp_path / "other.safetensors"
    save_file({name: value for name, value in changed.items() if value is not None}, path)
    with pytest.raises(InputError, match=rf"other\.safetensors: expected weights of this tower, {message}; name the"):
        image_tower(with_weights(path), 16)


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    weights = ConvNet(16).state_dict()
    weights["blocks.0.weight"][0, 0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: expected numbers, found NaN or infinity in blocks\.0\.weight; fetch"):
        image_tower(with_weights(tmp_path / "w.pt"), 16)


def test_two_of_one_name_are_no_weights(tmp_path: Path) -> None:
    weights = ConvNet(16).state_dict()
    torch.save(behind("module.")(weights) | behind("_orig_mod.")(weights), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: expected weights of this tower, found nothing for blocks\.0\.weight"):
        image_tower(with_weights(tmp_path / "w.pt"), 16)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_pointer_of_git_lfs_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(POINTER)
    found = "found a Git LFS pointer; fetch it with git lfs pull$"
    with pytest.raises(InputError, match=f"{name}: expected weights of the image tower, {found}"):
        image_tower(with_weights(path), 16)
    with pytest.raises(InputError, match=f"{name}: expected weights of open_clip:ViT-B-32, {found}"):
        text_tower(EncoderConfig(text_tower="open_clip:ViT-B-32", text_weights=path))


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match=f"{path}: expected weights of the image tower, found no such file; check"):
            image_tower(with_weights(path), 16)


@pytest.mark.parametrize("dump", [torch.save, dump_pickle])
def test_a_pickle_that_holds_code_is_refused_and_does_not_run(tmp_path: Path, dump: Dump) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    dump({"blocks.0.weight": Touch(trace)}, path)
    with pytest.raises(
        InputError, match=r"weights\.pt: expected tensors alone, .*, found what would have to be executed"
    ):
        image_tower(with_weights(path), 16)
    assert not trace.exists()
    (pickle.loads(path.read_bytes()) if dump is dump_pickle else torch.load(path, weights_only=False))
    assert trace.exists()  # the trap works


@pytest.mark.parametrize(("name", "what"), [("w.pt", "a file of torch.save"), ("w.safetensors", "safetensors")])
def test_a_damaged_file_of_weights_is_refused(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04 neither")
    with pytest.raises(InputError, match=f"{name}: expected {what}, found a damaged"):
        image_tower(with_weights(tmp_path / name), 16)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"state_dict": 3}, {}])
def test_a_file_without_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"w\.pt: expected weights"):
        image_tower(with_weights(tmp_path / "w.pt"), 16)


# Students


def test_students_share_their_start_and_differ_in_their_heads() -> None:
    torch.manual_seed(1)
    one, other = make_student(CONVNET, 16, 6, (0, "expert", 0)), make_student(CONVNET, 16, 6, (0, "expert", 1))
    torch.manual_seed(2)
    again = make_student(CONVNET, 16, 6, (0, "expert", 0))
    image, text = one.layers.group_sizes
    a, b = one.flatten().split([image, text]), other.flatten().split([image, text])
    assert one.layers == other.layers and one.layers.group_names == ("image", "text")
    assert torch.equal(a[0], b[0]) and not torch.equal(a[1], b[1])
    assert torch.equal(again.flatten(), one.flatten())
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(2)))


def test_a_frozen_tower_leaves_two_heads() -> None:
    config = replace(CONVNET, freeze_tower=True)
    weights = {name: torch.randn_like(value) for name, value in ConvNet(16).state_dict().items()}
    one, other = (make_student(config, 16, 6, (0, draw), weights) for draw in (0, 1))
    parts = ["projection.weight", "projection.bias", "fc.weight", "fc.bias", "norm.weight", "norm.bias"]
    assert one.layers.names == (*(f"image.{part}" for part in parts), *(f"text.{part}" for part in parts))
    assert one.layers.group_sizes == (64 * 8 + 8 + 8 * 8 + 8 + 16, 6 * 8 + 8 + 8 * 8 + 8 + 16)
    images = torch.randn(3, 3, 16, 16)
    for group in range(2):
        a, b = (student.flatten().split(student.layers.group_sizes)[group] for student in (one, other))
        assert not torch.equal(a, b)
    assert torch.equal(one.embed_images(other.flatten(), images), other.embed_images(other.flatten(), images))
    by_hand, _ = image_tower(config, 16, weights)
    p = dict(zip(parts, one.layers.split(one.flatten())[:6], strict=True))
    projected = by_hand(images) @ p["projection.weight"].T + p["projection.bias"]
    bent = 0.5 * projected * (1 + torch.erf(projected / sqrt(2)))
    out = bent @ p["fc.weight"].T + p["fc.bias"] + projected
    centred = out - out.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    assert relative_error(one.embed_images(one.flatten(), images).detach(), normed.detach()) <= 1e-5


def test_heads_on_a_frozen_tower_are_as_wide_as_it_unless_set() -> None:
    student = make_student(replace(CONVNET, freeze_tower=True, head_width=None), 16, 6, (0,))
    assert student.layers.group_sizes == (2 * (64 * 64 + 64) + 2 * 64, 6 * 64 + 64 + 64 * 64 + 64 + 2 * 64)


# Hashed texts


def hashed_by_hand(caption: str, width: int) -> np.ndarray:
    words = re.findall(r"\w\w+", caption.lower())
    counts = np.zeros(width)
    for term in words + [f"{a} {b}" for a, b in pairwise(words)]:
        number = murmurhash3_32(term, seed=0)
        counts[abs(number) % width] += 1 if number >= 0 else -1
    norm = np.linalg.norm(counts)
    return counts * sqrt(width) / norm if norm else counts


@pytest.mark.parametrize("width", [16, 255, 256])
def test_hashed_texts_are_signed_counts(width: int) -> None:
    captions = [*CAPTIONS, "star Star STAR", "naïve café über", "a", "", "one-two three_four 5 66"]
    found = HashedText(width).embed(captions)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), [hashed_by_hand(c, width) for c in captions], rtol=1e-6, atol=1e-7)
    norms = found.norm(dim=1)[:-3]
    torch.testing.assert_close(norms, torch.full_like(norms, sqrt(width)))


def test_hashed_texts_are_known_values() -> None:
    found = HashedText(8).embed(["a red star left of a blue box"])[0]
    unit = sqrt(8 / 7)
    assert found.tolist() == pytest.approx([-2 * unit, 0, 0, unit, 0, -unit, 0, unit], abs=1e-6)


def test_word_order_counts_by_bigrams_only() -> None:
    one, same, other, single, double = HashedText(4096).embed(
        ["red star", "red star", "star red", "circle", "circle circle"]
    )
    assert torch.equal(one, same)
    # Two of three terms are shared; a doubled word has one count of two and a bigram.
    assert (one @ other / 4096).item() == pytest.approx(2 / 3, rel=1e-6)
    assert (single @ double / 4096).item() == pytest.approx(2 / sqrt(5), rel=1e-6)


@pytest.mark.parametrize(
    ("caption", "terms"),
    [
        ("一只红狗。", "一 只 红 狗 一+只 只+红 红+狗"),
        ("赤い犬がボールで遊ぶ", "赤 い 犬 が ボ ー ル で 遊 ぶ 赤+い い+犬 犬+が が+ボ ボ+ー ー+ル ル+で で+遊 遊+ぶ"),
        ("หมาแดง", "ห ม า แ ด ง ห+ม ม+า า+แ แ+ด ด+ง"),
        ("a photo of 红狗 twice", "photo of 红 狗 twice photo+of of+红 红+狗 狗+twice"),
        ("빨간 개 사진", "빨간 사진 빨간+사진"),
    ],
)
def test_scripts_without_spaces_are_hashed_by_characters(caption: str, terms: str) -> None:
    counts = np.zeros(64)
    for term in terms.split():
        number = murmurhash3_32(term.replace("+", " "), seed=0)
        counts[abs(number) % 64] += 1 if number >= 0 else -1
    found = HashedText(64).embed([caption])[0].numpy()
    np.testing.assert_allclose(found, counts * 8 / np.linalg.norm(counts), rtol=1e-6, atol=1e-7)


def test_captions_of_characters_are_alike_where_they_share_some() -> None:
    one, like, other = HashedText(4096).embed(["一只红色的狗", "一只白色的狗", "城市夜景"])
    assert one @ like > 0.5 * 4096 and abs(one @ other) < 0.1 * 4096


def test_hashed_text_names_itself() -> None:
    tower = text_tower(EncoderConfig(text_width=24))
    assert tower.width == 24 and tower.embed(CAPTIONS).shape == (3, 24)
    assert tower.fingerprint != text_tower(EncoderConfig(text_width=25)).fingerprint


@pytest.mark.parametrize("name", ["bert", "hff:bert", "open-clip:ViT-B-32", "hashed:3"])
def test_an_unknown_text_tower_is_refused(name: str) -> None:
    message = f"text_tower: expected hashed, hf:NAME, pypi:NAME or open_clip:NAME, found {name}; fix the name"
    with pytest.raises(InputError, match=message):
        text_tower(EncoderConfig(text_tower=name))


# The cache


@dataclass
class Counting:
    """A text tower that counts its work."""

    fingerprint: str = "counting:1"
    width: int = 2
    calls: Counter[str] = field(default_factory=Counter)

    def embed(self, captions: Sequence[str], device: torch.device = CPU) -> Tensor:
        self.calls.update(captions)
        return torch.tensor([[len(c), self.calls.total()] for c in captions], dtype=torch.float32)


def test_texts_are_embedded_once() -> None:
    tower = Counting()
    first = embed_captions(tower, CAPTIONS)
    assert torch.equal(embed_captions(tower, tuple(CAPTIONS)), first)
    assert torch.equal(embed_captions(Counting(), CAPTIONS), first)
    assert tower.calls == Counter(CAPTIONS)


@pytest.mark.parametrize(
    "other",
    [
        CAPTIONS[:2],
        CAPTIONS[::-1],
        [*CAPTIONS, ""],
        ["\n".join(CAPTIONS)],
        [CAPTIONS[0], "\n".join(CAPTIONS[1:])],
    ],
)
def test_other_captions_are_other_entries(other: list[str]) -> None:
    tower = Counting()
    embed_captions(tower, CAPTIONS)
    assert len(embed_captions(tower, other)) == len(other)
    assert tower.calls == Counter(CAPTIONS) + Counter(other)


def test_another_tower_is_another_entry() -> None:
    one, other = Counting(), Counting("counting:2")
    embed_captions(one, CAPTIONS)
    embed_captions(other, CAPTIONS)
    assert one.calls == other.calls == Counter(CAPTIONS)
    glued = Counting(f"counting:1\n{CAPTIONS[0]}")
    embed_captions(glued, CAPTIONS[1:])
    assert glued.calls.total() == 2


def test_what_an_earlier_way_of_embedding_left_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = Counting()
    embed_captions(tower, CAPTIONS)
    monkeypatch.setattr(text_towers, "_CACHE_VERSION", text_towers._CACHE_VERSION + 1)
    embed_captions(tower, CAPTIONS)
    assert tower.calls == Counter(CAPTIONS * 2)


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_cache_is_made_anew(damage: bytes | None) -> None:
    tower = Counting()
    embed_captions(tower, CAPTIONS)
    (path,) = cache_folder().iterdir()
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    again = embed_captions(tower, CAPTIONS)
    assert again.tolist() == [[len(c), 6] for c in CAPTIONS]
    assert torch.equal(embed_captions(tower, CAPTIONS), again) and tower.calls.total() == 6


def test_the_cache_lies_where_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PTMST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "ptmst"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ptmst"


@pytest.mark.parametrize("count", [0, 1, 256, 257, 700])
def test_captions_are_embedded_in_chunks(count: int) -> None:
    draw = np.random.default_rng(0)
    captions = ["x" * int(length) for length in draw.integers(1, 200, count)]
    own = chunks(captions, CPU)
    assert [number for some in own for number in some] == list(range(count))
    by_length = chunks(captions, torch.device("cuda"))
    assert sorted(number for some in by_length for number in some) == list(range(count))
    for found in (own, by_length):
        assert [len(some) for some in found] == [256] * (count // 256) + [count % 256] * (count % 256 > 0)
    lengths = [[len(captions[number]) for number in some] for some in by_length]
    assert all(min(longer) >= max(shorter) for longer, shorter in pairwise(lengths))


# Hugging Face


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"), CAPTIONS)


def test_hf_text_is_the_cls_token(bert: Path) -> None:
    import transformers

    tower = text_tower(EncoderConfig(text_tower=f"hf:{bert}"))
    captions = CAPTIONS * 100
    found = tower.embed(captions)
    assert tower.width == 16 and found.shape == (300, 16) and found.dtype == torch.float32
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False)
    model.train(False)
    for i, caption in [*enumerate(CAPTIONS), (298, CAPTIONS[1])]:
        with torch.no_grad():
            alone = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0, 0]
        assert relative_error(found[i], alone) <= 1e-4
    assert not found.requires_grad
    assert relative_error(found[0], found[2]) > 1e-2


def test_a_text_model_is_on_a_device_only_while_it_embeds(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the device has shapes only, and the embeddings are made up."""
    tower = HuggingFaceText(str(bert))
    meta, lain = torch.device("meta"), []

    def embed(self: HuggingFaceText, captions: list[str], device: torch.device) -> Tensor:
        lain.append({p.device.type for p in self._model.parameters()})
        return torch.full((len(captions), 16), float(len(lain)), dtype=torch.bfloat16)

    moves: list[torch.device] = []
    there = tower._model.to

    def move(device: torch.device) -> None:
        moves.append(device)
        if device == meta:
            there(device)

    monkeypatch.setattr(HuggingFaceText, "_embed", embed)
    monkeypatch.setattr(tower._model, "to", move)
    captions = ["a star"] * 256 + ["two green boxes"] * 3
    found = tower.embed(captions, meta)
    assert lain == [{"meta"}] * 2 and moves == [meta, CPU]
    # The three longest are of the first chunk.
    assert found.dtype == torch.float32 and found[:, 0].tolist() == [1.0] * 253 + [2.0] * 3 + [1.0] * 3


def test_hf_fingerprint_names_the_weights(bert: Path, tmp_path: Path) -> None:
    import transformers

    one = text_tower(EncoderConfig(text_tower=f"hf:{bert}"))
    torch.manual_seed(7)
    assert text_tower(EncoderConfig(text_tower=f"hf:{bert}")).fingerprint == one.fingerprint
    model = transformers.BertModel.from_pretrained(bert)
    with torch.no_grad():
        model.get_parameter("encoder.layer.1.output.dense.bias")[3] += 1e-3
    model.save_pretrained(tmp_path / "other")
    for file in bert.glob("tok*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    assert text_tower(EncoderConfig(text_tower=f"hf:{tmp_path / 'other'}")).fingerprint != one.fingerprint


def test_hf_text_in_a_process_of_its_own(bert: Path) -> None:
    """Beside our folder `kernels`, which transformers must not take for the package of that name."""
    code = (
        "from ptmst.config import EncoderConfig; from ptmst.students.text_towers import text_tower; "
        f"print(text_tower(EncoderConfig(text_tower='hf:{bert}')).fingerprint)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == text_tower(EncoderConfig(text_tower=f"hf:{bert}")).fingerprint


def test_an_hf_model_that_cannot_be_had_is_refused(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    for file in bert.iterdir():
        (tmp_path / "damaged" / file.name).write_bytes(file.read_bytes()[: -1000 if "model" in file.name else None])
    for name in ("no/such/bert", str(tmp_path / "empty"), str(tmp_path / "damaged")):
        with pytest.raises(InputError, match=f"text_tower hf:{name}: cannot be loaded (.+); name a model or a folder"):
            text_tower(EncoderConfig(text_tower=f"hf:{name}"))
    with pytest.raises(InputError, match=r"text_tower hf:no-such-user/no-such-bert: .* found no such folder, and the"):
        text_tower(EncoderConfig(text_tower="hf:no-such-user/no-such-bert"))


def _saved(path: Path, model: Any, tokenizer: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model().save_pretrained(path)
    for file in tokenizer.iterdir():
        if "token" in file.name or file.name == "vocab.txt":
            (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize(("kind", "width"), [("bert-base", 768), ("distilbert", 768), ("bge-small", 384)])
def test_the_text_encoders_that_are_named(kind: str, width: int, bert: Path, tmp_path: Path) -> None:
    """Of published widths and heads, in two layers, with random weights."""
    transformers = pytest.importorskip("transformers")
    words = len((bert / "vocab.txt").read_text().split())

    def model() -> Any:
        if kind == "distilbert":
            config = transformers.DistilBertConfig(vocab_size=words, n_layers=2, initializer_range=0.3)
            return transformers.DistilBertModel(config)
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": 12}
        config = transformers.BertConfig(vocab_size=words, num_hidden_layers=2, initializer_range=0.3, **sizes)
        return transformers.BertModel(config)

    path = _saved(tmp_path / kind, model, bert)
    tower = text_tower(EncoderConfig(text_tower=f"hf:{path}"))
    long = " ".join([CAPTIONS[1]] * 80)  # of more words than the model has positions
    found = tower.embed([*CAPTIONS, long])
    assert tower.width == width and found.shape == (4, width)
    loaded = transformers.AutoModel.from_pretrained(path).eval()
    ids = {word: number for number, word in enumerate((bert / "vocab.txt").read_text().split())}
    for caption, embed in zip([*CAPTIONS, long], found, strict=True):
        tokens = [ids["[CLS]"], *(ids[word] for word in caption.split()[:510]), ids["[SEP]"]]
        with torch.no_grad():
            alone = loaded(input_ids=torch.tensor([tokens])).last_hidden_state[0, 0]
        assert relative_error(embed, alone) <= 1e-4


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_the_text_of_a_model_of_images_and_texts(
    kind: str, bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ViT-B/32's text tower in two layers: its projected text feature, whatever stands beside a caption."""
    transformers = pytest.importorskip("transformers")
    words = (bert / "vocab.txt").read_text().split()
    ends = {"bos_token_id": words.index("[CLS]"), "eos_token_id": words.index("[SEP]"), "pad_token_id": 0}
    text = {"vocab_size": len(words), "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    positions = 77 if kind == "CLIP" else 64
    text |= {"max_position_embeddings": positions, "num_hidden_layers": 2} | ends

    def model() -> Any:
        config = getattr(transformers, f"{kind}Config")(text_config=text, vision_config=vision)
        return getattr(transformers, f"{kind}Model")(config)

    path = _saved(tmp_path / "both", model, bert)
    tower = text_tower(EncoderConfig(text_tower=f"hf:{path}"))
    found = tower.embed(CAPTIONS)
    assert "cut" not in caplog.text
    tower.embed([*CAPTIONS, "a red star " * 40])
    assert f"text_tower hf:{path}: 1 of 4 captions have more than {positions} tokens and were cut there" in caplog.text
    assert tower.width == 512 and found.shape == (3, 512)
    loaded = transformers.AutoModel.from_pretrained(path).eval()
    for caption, embed in zip(CAPTIONS, found, strict=True):
        tokens = [words.index(word) for word in ["[CLS]", *caption.split(), "[SEP]"]]
        shown = torch.zeros(1, positions, dtype=torch.long)
        shown[0, : len(tokens)] = torch.tensor(tokens)
        mask = torch.zeros_like(shown)
        mask[0, : len(tokens)] = 1
        with torch.no_grad():
            states = loaded.text_model(input_ids=shown, attention_mask=mask).last_hidden_state[0]
            # CLIP pools the end-of-text token and projects it; SigLIP the last position, by its head.
            alone = (
                loaded.text_projection(states[len(tokens) - 1])
                if kind == "CLIP"
                else loaded.text_model.head(states[-1])
            )
        assert relative_error(embed, alone) <= 1e-4


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2}, "expected an encoder whose first token sees the whole cap"),
        (
            "ViT",
            {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            r"found one that does not embed a caption \(",
        ),
        ("T5", {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1}, r"found one that does not embed a caption \("),
    ],
)
def test_a_model_that_embeds_no_captions_is_refused(
    kind: str, settings: Mapping[str, int], message: str, bert: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    def model() -> Any:
        return getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**settings))

    path = _saved(tmp_path / kind, model, bert)
    with pytest.raises(InputError, match=f"text_tower hf:{path}: .*{message}.*choose another$"):
        text_tower(EncoderConfig(text_tower=f"hf:{path}"))


# Folders of Hugging Face as they are


def copied(folder: Path, to: Path, **changed: Mapping[str, Any]) -> Path:
    """A copy, with other values in some of its JSON files; those that are None are left out."""
    shutil.copytree(folder, to)
    for file, values in changed.items():
        path = to / f"{file}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        merged = {key: value for key, value in {**before, **values}.items() if value is not None}
        path.write_text(json.dumps(merged))
    return to


@pytest.fixture(scope="module")
def roberta(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its positions begin after that of padding, and its tokenizer knows no length."""
    transformers = pytest.importorskip("transformers")
    plain = tmp_path_factory.mktemp("roberta")
    words = (bert / "vocab.txt").read_text().split()
    (plain / "vocab.txt").write_text("\n".join([words[1], words[0], *words[2:]]))
    transformers.BertTokenizerFast.from_pretrained(plain).save_pretrained(plain)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.RobertaConfig(
        vocab_size=len(words), max_position_embeddings=514, pad_token_id=1, initializer_range=0.5, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(8)
        transformers.RobertaModel(config).save_pretrained(plain)
    return copied(plain, plain.with_name("roberta-copy"), tokenizer_config={"model_max_length": None})


def test_a_long_caption_of_roberta_is_cut_and_said(roberta: Path, caplog: pytest.LogCaptureFixture) -> None:
    import transformers

    tower = text_tower(EncoderConfig(text_tower=f"hf:{roberta}"))
    words = (roberta / "vocab.txt").read_text().split()
    long, exact = " ".join(["star", "red"] * 300), " ".join(["star", "red"] * 255)
    found = tower.embed([long, exact, "a red star"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    model = transformers.AutoModel.from_pretrained(roberta).eval()
    tokens = [words.index(word) for word in ["[CLS]", *exact.split(), "[SEP]"]]
    assert len(tokens) == 512
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([tokens])).last_hidden_state[0, 0]
    assert relative_error(found[0], expected) <= 1e-4
    told = f"text_tower hf:{roberta}: 1 of 3 captions have more than 512 tokens and were cut there"
    assert [record.getMessage() for record in caplog.records if "cut" in record.getMessage()] == [told]


POOLED: dict[str, Callable[[Tensor], Tensor]] = {
    "cls_token": lambda states: states[0],
    "mean_tokens": lambda states: states.mean(0),
    "max_tokens": lambda states: states.amax(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / sqrt(len(states)),
}


def sentence_folder(bert: Path, to: Path, pooling: Mapping[str, Any], *more: str, **files: Mapping[str, Any]) -> Path:
    """As sentence-transformers saves it: the model, its pooling, and more modules."""
    copied(bert, to, **files)
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *((f"{i + 2}_{kind}", kind) for i, kind in enumerate(more)),
    ]
    lines = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (to / "modules.json").write_text(json.dumps(lines))
    (to / "1_Pooling").mkdir()
    (to / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return to


@pytest.mark.parametrize("mode", POOLED)
@pytest.mark.parametrize("normalized", [False, True])
def test_a_sentence_folder_is_embedded_as_it_asks(bert: Path, tmp_path: Path, mode: str, normalized: bool) -> None:
    import transformers

    asked = {f"pooling_mode_{other}": other == mode for other in POOLED}
    folder = sentence_folder(bert, tmp_path / "st", asked, *["Normalize"] * normalized)
    found = text_tower(EncoderConfig(text_tower=f"hf:{folder}")).embed(CAPTIONS)
    model = transformers.AutoModel.from_pretrained(bert).eval()
    words = (bert / "vocab.txt").read_text().split()
    for caption, embed in zip(CAPTIONS, found, strict=True):
        tokens = torch.tensor([[words.index(word) for word in ["[CLS]", *caption.split(), "[SEP]"]]])
        with torch.no_grad():
            expected = POOLED[mode](model(input_ids=tokens).last_hidden_state[0])
        assert relative_error(embed, expected / expected.norm() if normalized else expected) <= 1e-4


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_a_sentence_folder_says_its_length(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """In a file that earlier releases of sentence-transformers named by the model; the first of two counts."""
    about = {"max_seq_length": 5, "do_lower_case": True}
    files = {f"sentence_{kind}_config": about}
    if kind != "xlnet":
        files["sentence_xlnet_config"] = {"max_seq_length": 4}
    folder = sentence_folder(bert, tmp_path / "st", {"pooling_mode": ["mean"]}, **files)
    found = text_tower(EncoderConfig(text_tower=f"hf:{folder}")).embed(
        ["two GREEN boxes beside one", "two green boxes"]
    )
    assert torch.equal(found[0], found[1])
    assert "1 of 2 captions have more than 5 tokens" in caplog.text


@pytest.mark.parametrize(
    ("pooling", "more", "files", "message"),
    [
        ({"pooling_mode_lasttoken": True}, (), {}, "expected one pooling of cls, max, .*, found lasttoken; choose"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}, (), {}, "found mean_tokens and lasttoken"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_other": True}, (), {}, "found mean_tokens and other; choose"),
        ({"pooling_mode": ["mean", "lasttoken"]}, (), {}, "found mean and lasttoken; choose another"),
        ({"pooling_mode_mean_tokens": False}, (), {}, "found none; choose another"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
            (),
            {},
            "found mean_tokens and max_tokens; choose",
        ),
        ({"pooling_mode": "lasttoken"}, (), {}, "found lasttoken; choose another"),
        (
            {"pooling_mode_mean_tokens": True},
            ("Dense",),
            {},
            "expected a model, pooling and normalization, found Dense",
        ),
        ({"pooling_mode": "mean"}, ("Pooling",), {}, "found Transformer, Pooling, Pooling .modules.json.; choose"),
        ({"pooling_mode": "mean"}, ("Normalize", "Pooling"), {}, "found Transformer, Pooling, Normalize, Pooling "),
        (
            {"pooling_mode_mean_tokens": True},
            (),
            {"config_sentence_transformers": {"default_prompt_name": "query", "prompts": {"query": "q: "}}},
            "expected captions to be embedded as they are, found a prompt before each",
        ),
    ],
)
def test_a_sentence_folder_that_asks_for_more_is_refused(
    bert: Path, tmp_path: Path, pooling: dict[str, Any], more: tuple[str, ...], files: dict[str, Any], message: str
) -> None:
    folder = sentence_folder(bert, tmp_path / "st", pooling, *more, **files)
    with pytest.raises(InputError, match=f"text_tower hf:{folder}: .*{message}"):
        text_tower(EncoderConfig(text_tower=f"hf:{folder}"))


REPOSITORY = "some-user/some-model"


def cached_from_the_hub(folder: Path, cache: Path, lacking: Sequence[str]) -> None:
    """A cache of the hub with a folder's files, in which it is recorded that there are no `lacking` ones."""
    place = cache / f"models--{REPOSITORY.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / "abc")
    for path in (place / ".no_exist" / "abc" / file for file in lacking):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")


KNOWN = ["config_sentence_transformers.json"]


@pytest.mark.parametrize(
    ("sentences", "lacking", "unknown"),
    [
        (False, [], "modules.json"),
        (False, ["modules.json"], None),
        (True, [], "config_sentence_transformers.json"),
        (True, KNOWN, None),
    ],
)
def test_what_the_hub_did_not_say_is_not_taken_for_none(
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sentences: bool,
    lacking: list[str],
    unknown: str | None,
) -> None:
    """Where it cannot be asked; a model that was loaded with transformers alone has none of the files that decide."""
    import huggingface_hub

    folder = bert
    if sentences:
        about = {"max_seq_length": 7}
        folder = sentence_folder(bert, tmp_path / "st", {"pooling_mode": "mean"}, sentence_bert_config=about)
    cached_from_the_hub(folder, tmp_path / "hub", lacking)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = EncoderConfig(text_tower=f"hf:{REPOSITORY}")
    if unknown is None:
        expected = text_tower(EncoderConfig(text_tower=f"hf:{folder}"))
        assert torch.equal(text_tower(config).embed(CAPTIONS), expected.embed(CAPTIONS))
        return
    message = f"text_tower hf:{REPOSITORY}: .*cannot be asked whether its model has {unknown}.*; load it once where"
    with pytest.raises(InputError, match=message):
        text_tower(config)


def test_a_file_that_the_hub_says_there_is_none_of_is_none(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    def asked(repository: str, file: str) -> str:
        raise EntryNotFoundError(f"{repository} has no {file}")

    cached_from_the_hub(bert, tmp_path / "hub", [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    found = text_tower(EncoderConfig(text_tower=f"hf:{REPOSITORY}"))
    assert found.fingerprint == text_tower(EncoderConfig(text_tower=f"hf:{bert}")).fingerprint


def test_a_fingerprint_is_of_all_that_decides_and_of_nothing_else(bert: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return text_tower(EncoderConfig(text_tower=f"hf:{folder}")).fingerprint

    own = fingerprint(bert)
    passing = {"_name_or_path": "elsewhere", "transformers_version": "4.0.0"}
    assert fingerprint(copied(bert, tmp_path / "copy", config=passing)) == own
    words = (bert / "vocab.txt").read_text().split()
    others = [
        copied(bert, tmp_path / "eps", config={"layer_norm_eps": 1e-3}),
        copied(bert, tmp_path / "heads", config={"num_attention_heads": 4}),
        copied(bert, tmp_path / "length", tokenizer_config={"model_max_length": 9}),
        sentence_folder(bert, tmp_path / "mean", {"pooling_mode_mean_tokens": True}),
        sentence_folder(bert, tmp_path / "unit", {"pooling_mode_cls_token": True}, "Normalize"),
        sentence_folder(bert, tmp_path / "long", {"pooling_mode": "cls"}, sentence_bert_config={"max_seq_length": 7}),
    ]
    for name, changed, cased in (("order", [*words[:-2], words[-1], words[-2]], False), ("cased", words, True)):
        folder = copied(bert, tmp_path / name)
        for file in folder.glob("tok*"):
            file.unlink()
        (folder / "vocab.txt").write_text("\n".join(changed))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": not cased})
        )
        others.append(folder)
    found = [fingerprint(folder) for folder in others]
    assert len({own, *found}) == 1 + len(others)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float16])
def test_weights_in_half_are_embedded_in_whole(bert: Path, tmp_path: Path, kept: torch.dtype) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(bert)
    for folder, type_ in (("half", kept), ("whole", torch.float32)):
        shutil.copytree(bert, tmp_path / folder)
        model.to(type_).save_pretrained(tmp_path / folder)
    half, whole = (text_tower(EncoderConfig(text_tower=f"hf:{tmp_path / name}")) for name in ("half", "whole"))
    assert torch.equal(half.embed(CAPTIONS), whole.embed(CAPTIONS)) and half.fingerprint == whole.fingerprint


def without_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def without_words(folder: Path) -> None:
    for file in (*folder.glob("tokenizer*"), folder / "vocab.txt"):
        file.unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def with_more_words(folder: Path) -> None:
    words = (folder / "vocab.txt").read_text()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text(words + "\nnew\nwords")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def without_tokenizer(folder: Path) -> None:
    for file in (*folder.glob("tokenizer*"), folder / "vocab.txt"):
        file.unlink()


def with_a_pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)


def with_code(folder: Path) -> None:
    copied(folder, folder.with_name("code"), config={"auto_map": {"AutoModel": "model.Model"}, "model_type": "odd"})
    (folder / "config.json").write_bytes((folder.with_name("code") / "config.json").read_bytes())
    (folder / "model.py").write_text("raise SystemExit('it ran')")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_layer, r"expected weights of every layer, found none for .*encoder\.layer\.1\.output\.dense\.bias"),
        (without_words, "expected a tokenizer of the 20 words of its model, found one of 5; fetch its tokenizer"),
        (with_more_words, "expected a tokenizer of the 20 words of its model, found one of 2[23]; fetch its tokenizer"),
        (without_tokenizer, "(cannot be loaded|expected a tokenizer of the 20 words)"),
        (with_a_pointer, "found a Git LFS pointer; fetch it with git lfs pull"),
        (with_code, "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_a_part_is_refused(
    bert: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bert, folder)
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        text_tower(EncoderConfig(text_tower=f"hf:{folder}"))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# open_clip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of an open_clip model that is small enough to make."""
    path = tmp_path_factory.mktemp("clip") / "ptmst-tiny.json"
    config: dict[str, Any] = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    yield path.stem
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path)
    open_clip.factory._rescan_model_configs()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_open_clip_text_is_its_text_tower(clip: str, tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(3)
    model, path = open_clip.create_model(clip).eval(), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    tower = text_tower(EncoderConfig(text_tower=f"open_clip:{clip}", text_weights=path))
    captions = CAPTIONS * 100
    found = tower.embed(captions)
    assert tower.width == 12 and found.shape == (300, 12)
    tokenizer = open_clip.get_tokenizer(clip)
    for i in (0, 1, 2, 298):
        with torch.no_grad():
            alone = model.encode_text(tokenizer([captions[i]]))[0]
        assert relative_error(found[i], alone) <= 1e-4
    assert not found.requires_grad


@pytest.mark.parametrize("way", [way for way in WRITTEN if way not in ("plain", "of a compiled part")])
def test_open_clip_weights_in_wrappers(clip: str, tmp_path: Path, way: str) -> None:
    torch.manual_seed(3)
    model, path = open_clip.create_model(clip).eval(), tmp_path / "weights.pt"
    torch.save(WRITTEN[way](model.state_dict()), path)
    found = text_tower(EncoderConfig(text_tower=f"open_clip:{clip}", text_weights=path)).embed(CAPTIONS)
    with torch.no_grad():
        expected = model.encode_text(open_clip.get_tokenizer(clip)(CAPTIONS))
    assert relative_error(found, expected) <= 1e-4


def test_open_clip_says_how_many_captions_it_cuts(clip: str, caplog: pytest.LogCaptureFixture) -> None:
    tower = text_tower(EncoderConfig(text_tower=f"open_clip:{clip}"))
    fits, longer = "a " * 14, "a " * 15
    assert not torch.equal(*tower.embed([fits, "a " * 13]))
    assert "cut" not in caplog.text
    assert torch.equal(*tower.embed([longer, "a " * 16]))
    assert f"text_tower open_clip:{clip}: 2 of 2 captions have more than 16 tokens and were cut there" in caplog.text


def test_open_clip_without_weights_is_always_the_same(clip: str, caplog: pytest.LogCaptureFixture) -> None:
    config = EncoderConfig(text_tower=f"open_clip:{clip}")
    one = text_tower(config)
    assert f"text_tower open_clip:{clip}: starts from random weights; give it trained ones with" in caplog.text
    torch.manual_seed(9)
    again = text_tower(config)
    assert one.fingerprint == again.fingerprint
    assert torch.equal(one.embed(CAPTIONS), again.embed(CAPTIONS))


def test_open_clip_fingerprint_names_the_weights(clip: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(open_clip.create_model(clip).state_dict(), path)
    own = text_tower(EncoderConfig(text_tower=f"open_clip:{clip}", text_weights=path))
    assert own.fingerprint != text_tower(EncoderConfig(text_tower=f"open_clip:{clip}")).fingerprint


def test_an_unknown_open_clip_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"open_clip:ViT-B-33: unknown model; did you mean .*ViT-B-32"):
        text_tower(EncoderConfig(text_tower="open_clip:ViT-B-33"))


def test_open_clip_weights_that_cannot_be_had_are_refused(clip: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    config = EncoderConfig(text_tower=f"open_clip:{clip}", text_weights=path)
    with pytest.raises(InputError, match=f"text_weights: expected a file, found none at {path}; check the path"):
        text_tower(config)
    message = (
        rf"weights\.pt: expected weights of open_clip:{clip}, found a file that holds others or is damaged \(.+\); name"
    )
    path.write_bytes(b"PK\x03\x04 neither")
    with pytest.raises(InputError, match=message):
        text_tower(config)
    torch.save({"positional_embedding": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=message):
        text_tower(config)


@pytest.mark.parametrize("dump", [torch.save, dump_pickle])
def test_an_open_clip_pickle_that_holds_code_does_not_run(clip: str, tmp_path: Path, dump: Dump) -> None:
    path, trace = tmp_path / "weights.pt", tmp_path / "trace"
    dump({"positional_embedding": Touch(trace)}, path)
    with pytest.raises(InputError, match=r"weights\.pt: expected weights"):
        text_tower(EncoderConfig(text_tower=f"open_clip:{clip}", text_weights=path))
    assert not trace.exists()
