"""Teaching against a plain torch loop; the store it leaves, its warm-up, and the baseline from the same data."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from oracles import relative_error
from ptmst.config import DataConfig, EncoderConfig, EvaluateConfig, TeachConfig
from ptmst.data import Pairs, load_pairs, pixels, write_scenes
from ptmst.data.augment import Views
from ptmst.data.sampling import random_subset
from ptmst.errors import Diverged, InputError
from ptmst.evaluation.baselines import random_pairs
from ptmst.evaluation.evaluate import evaluate, evaluate_experts
from ptmst.students.features import kept_features
from ptmst.students.heads import make_student
from ptmst.students.image_towers import image_tower
from ptmst.students.student import Student
from ptmst.students.text_towers import HashedText
from ptmst.students.warmup import caption_words, warm_tower
from ptmst.support import devices, folders
from ptmst.support.seeds import generator, seeded
from ptmst.synthetic.distilled_set import DistilledSet
from ptmst.teachers import side_by_side, teach, training
from ptmst.teachers.teach import train_teachers
from ptmst.teachers.training import train_on_pairs
from ptmst.trajectories.recorder import Recorder
from ptmst.trajectories.store import FOLDER, TrajectoryStore

IMAGE, TEXT_WIDTH, BATCH, EPOCHS = 16, 32, 16, 3
ENCODER = EncoderConfig(image_width=16, text_width=TEXT_WIDTH)
WARM = replace(ENCODER, warmup_epochs=2)


def write(root: Path, warmup: int = 16) -> Path:
    write_scenes(root, image_size=IMAGE, train=24, val=8, test=8, warmup=warmup, captions=2)
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that no test changes."""
    return write(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data that a test may change."""
    return write(tmp_path / "scenes")


@pytest.fixture
def config(scenes: Path, tmp_path: Path) -> TeachConfig:
    return teach_config(scenes, tmp_path / "store")


def teach_config(root: Path, out: Path, **changed: Any) -> TeachConfig:
    base = TeachConfig(
        out=out,
        data=DataConfig("scenes", root, IMAGE),
        encoder=ENCODER,
        experts=2,
        epochs=EPOCHS,
        batch_size=BATCH,
        endpoints=(2, 3),
        device="cpu",
    )
    return replace(base, **changed)


def train_pairs(config: TeachConfig) -> tuple[Pairs, Tensor]:
    pairs = load_pairs("scenes", config.data.folder, "train", IMAGE)
    return pairs, HashedText(TEXT_WIDTH).embed(pairs.captions)


def trained(config: TeachConfig, number: int) -> list[Tensor]:
    """θ of an expert after each epoch, as the engine trains it."""
    pairs, texts = train_pairs(config)
    student = make_student(config.encoder, IMAGE, TEXT_WIDTH, (config.seed, "expert", number))
    epochs = train_on_pairs(student, pairs, texts, config, number)
    return [epoch.theta.clone() for epoch in epochs]


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def tensors(path: Path) -> dict[str, str]:
    """Names and hashes of a store's files."""
    hashes: dict[str, str] = json.loads((path / "store.json").read_text())["hashes"]
    return hashes


# Training


def plain_modules(student: Student) -> list[nn.Module]:
    image, text, *towers = (deepcopy(module) for module in student.modules)
    return [nn.Sequential(*towers, image), text]


def plain_images(pairs: Pairs) -> Tensor:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) / 255 for path in pairs.image_paths]
    return (torch.from_numpy(np.stack(pixels)).float() - mean) / std


def plain_training(modules: list[nn.Module], config: TeachConfig, number: int) -> Iterator[tuple[Tensor, float]]:
    """Parameters and mean loss after each epoch: modules, an optimizer and cross entropy."""
    pairs, texts = train_pairs(config)
    images, (image, text) = plain_images(pairs), modules
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=config.lr)
    for epoch in range(config.epochs):
        order = torch.randperm(len(pairs), generator=generator(config.seed, "expert", number, epoch))
        losses = []
        for first in range(0, len(order), config.batch_size):
            index = order[first : first + config.batch_size]
            z = F.normalize(image(images[pairs.image_of_text[index]]), dim=1)
            logits = z @ F.normalize(text(texts[index]), dim=1).T / config.temperature
            own = torch.arange(len(index))
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        yield torch.cat([p.detach().flatten() for p in parameters]), float(np.mean(losses))


@pytest.mark.slow
@pytest.mark.parametrize("batch", [16, 20])
@pytest.mark.parametrize("frozen", [False, True])
def test_an_expert_is_a_plain_training_loop(config: TeachConfig, batch: int, frozen: bool) -> None:
    """The second batch size leaves a shorter last batch."""
    config = replace(config, batch_size=batch, encoder=replace(ENCODER, freeze_tower=frozen))
    pairs, texts = train_pairs(config)
    student = make_student(config.encoder, IMAGE, TEXT_WIDTH, (0, "expert", 1))
    modules = plain_modules(student)
    start = student.flatten()
    expected = [(start, math.nan), *plain_training(modules, config, 1)]
    found = train_on_pairs(student, pairs, texts, config, 1)
    for number, (epoch, (theta, loss)) in enumerate(zip(found, expected, strict=True)):
        assert epoch.number == number
        assert relative_error(epoch.theta, theta) <= 1e-6
        assert epoch.loss == pytest.approx(loss, rel=1e-5, nan_ok=True)
        assert number == 0 or relative_error(epoch.theta - start, theta - start) <= 1e-5
    assert torch.equal(student.flatten(), start)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_an_expert_as_published_sees_views_through_dropout(config: TeachConfig, frozen: bool) -> None:
    """Against a plain loop with the same views and masks: every head drops, and the last batch is left out."""
    encoder = replace(ENCODER, freeze_tower=frozen)
    config = replace(config, batch_size=20, encoder=encoder, augment=True, dropout=0.25, drop_last=True, epochs=2)
    pairs, texts = train_pairs(config)
    student = make_student(encoder, IMAGE, TEXT_WIDTH, (0, "expert", 1))
    image: Any
    image, text = plain_modules(student)
    *found, last = [(e.number, e.theta.clone(), e.loss) for e in train_on_pairs(student, pairs, texts, config, 1)]

    parameters = [p for module in (image, text) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=config.lr)

    def head(module: Any, inputs: Tensor, draws: torch.Generator) -> Tensor:
        projected = module.projection(inputs)
        out = module.fc(module.gelu(projected))
        found: Tensor = module.norm(out * (torch.rand(out.shape, generator=draws) >= 0.25) / 0.75 + projected)
        return found

    for epoch in range(2):
        key = (config.seed, "expert", 1, epoch)
        order = torch.randperm(len(pairs), generator=generator(*key))
        draws, losses = generator(*key, "dropout"), []
        for first in range(0, len(order) - 19, 20):
            index = order[first : first + 20]
            seen = Views(pairs, *key).pixels(index) / 255
            images = (seen - torch.tensor(pairs.mean).view(3, 1, 1)) / torch.tensor(pairs.std).view(3, 1, 1)
            z = head(image[1], image[0](images), draws) if frozen else image(images)
            y = head(text, texts[index], draws)
            logits = F.normalize(z, dim=1) @ F.normalize(y, dim=1).T / config.temperature
            own = torch.arange(20)
            loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert len(losses) == 2
        theta = torch.cat([p.detach().flatten() for p in parameters])
        _, expected, mean = [*found, last][epoch + 1]
        assert relative_error(expected, theta) <= 1e-6 and mean == pytest.approx(np.mean(losses), rel=1e-5)
    # Nothing of it stays with the student.
    theta = student.flatten()
    assert torch.equal(student.embed_texts(theta, texts[:2]), student.embed_texts(theta, texts[:2]))


@pytest.mark.slow
def test_experts_as_published_are_resumed_to_the_bit(config: TeachConfig, tmp_path: Path) -> None:
    config = replace(config, augment=True, dropout=0.1, drop_last=True)
    whole = train_teachers(replace(config, out=tmp_path / "whole")).path
    train_teachers(replace(config, experts=1))
    train_teachers(config)
    assert contents(config.out) == contents(whole)
    plain = tensors(train_teachers(replace(config, out=tmp_path / "plain", augment=False)).path)
    assert plain["expert-000.safetensors"] != tensors(whole)["expert-000.safetensors"]
    with pytest.raises(InputError, match=r"augment: True in the store, False asked for"):
        train_teachers(replace(config, augment=False))


@pytest.mark.slow
def test_features_are_looked_up_once_for_all_experts(config: TeachConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = list[int](), kept_features

    def counted(student: Student, pairs: Pairs, device: torch.device) -> Tensor:
        calls.append(len(pairs))
        return original(student, pairs, device)

    monkeypatch.setattr(training, "kept_features", counted)
    train_teachers(replace(config, encoder=replace(ENCODER, freeze_tower=True), experts=3))
    assert len(calls) == 1


@pytest.mark.slow
def test_what_is_recorded_is_what_was_walked(config: TeachConfig) -> None:
    store = TrajectoryStore.open(train_teachers(config).path)
    assert (store.epochs, store.endpoints, len(store)) == (EPOCHS, (2, 3), 2)
    for number in range(2):
        thetas, record = trained(config, number), store.expert(number)
        assert torch.equal(record.base, thetas[0])
        for k in (2, 3):
            assert relative_error(record.displacements[k].decode(store.layers), thetas[k] - thetas[0]) <= 3e-4
            assert relative_error(record.raw().point(k) - record.base, thetas[k] - thetas[0]) <= 4e-4
        for k in range(EPOCHS):
            step = (thetas[k + 1].double() - thetas[k].double()).split(store.layers.sizes)
            expected = [np.linalg.norm(part.numpy()) for part in step]
            np.testing.assert_allclose(record.step_norms[k].numpy(), expected, rtol=1e-4)
        losses = store.experts[number]["losses"]
        modules = plain_modules(store.student((0, "expert", number)))
        plain = [loss for _, loss in plain_training(modules, config, number)]
        assert losses == pytest.approx(plain, rel=1e-5) and losses[-1] < losses[0]


def test_a_recorder_copies_what_it_takes() -> None:
    student = make_student(ENCODER, IMAGE, TEXT_WIDTH, (0,))
    theta, recorder = student.flatten(), Recorder(student.layers, (1, 3))
    start = theta.clone()
    for _ in range(4):
        recorder.record(theta)
        theta += 1
    record = recorder.expert()
    assert torch.equal(record.base, start) and list(record.displacements) == [1, 3]
    assert record.displacements[3].decode(student.layers).tolist() == pytest.approx([3.0] * len(theta), rel=1e-5)
    roots = torch.tensor(student.layers.sizes).double().sqrt()
    np.testing.assert_allclose(record.step_norms.numpy(), roots.expand(3, -1).numpy(), rtol=1e-5)


# The store


@pytest.mark.slow
def test_a_seed_decides_every_bit(config: TeachConfig, tmp_path: Path) -> None:
    one, same, other = (
        train_teachers(replace(config, out=tmp_path / name, seed=seed)).path
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert contents(one) == contents(same)
    assert tensors(one) != tensors(other)
    store, others = TrajectoryStore.open(one), TrajectoryStore.open(other)
    image, _ = store.layers.group_sizes
    assert torch.equal(store.expert(0).base[:image], others.expert(0).base[:image])
    assert not torch.equal(store.expert(0).base[image:], store.expert(1).base[image:])
    assert not torch.equal(store.expert(0).base[image:], others.expert(0).base[image:])


@pytest.mark.slow
def test_a_store_does_not_continue_on_replaced_pictures(own: Path, tmp_path: Path) -> None:
    """Their names and captions stay; one of an earlier release, which records no bytes, continues."""
    config = teach_config(own, tmp_path / "store", experts=1)
    record = train_teachers(config).recipe.to_json()
    pictures = sorted((own / "images" / "train").glob("*.png"))
    hashes = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in pictures)
    assert record["data_content"] == hashlib.sha256(hashes).hexdigest()
    pictures[0].write_bytes(pictures[1].read_bytes())
    with pytest.raises(InputError, match=r"different ones \(data_content: \w{64} in the store, \w{64} asked for\)"):
        train_teachers(replace(config, experts=2))
    index = config.out / "store.json"
    value = json.loads(index.read_text())
    del value["settings"]["data_content"], value["sha256"]
    index.write_text(json.dumps(value))
    assert len(train_teachers(replace(config, experts=2))) == 2
    assert "data_content" not in TrajectoryStore.open(config.out).settings


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [ENCODER, WARM], ids=["cold", "warm"])
def test_more_experts_continue_a_store(config: TeachConfig, tmp_path: Path, encoder: EncoderConfig) -> None:
    config = replace(config, encoder=encoder)
    whole = train_teachers(replace(config, out=tmp_path / "whole")).path
    assert len(train_teachers(replace(config, experts=1))) == 1
    before = contents(config.out)["expert-000.safetensors"]
    continued = train_teachers(config)
    assert contents(config.out) == contents(whole)
    assert contents(config.out)["expert-000.safetensors"] == before
    assert continued.fingerprint == TrajectoryStore.open(whole).fingerprint


@pytest.mark.slow
def test_a_store_that_is_whole_is_left_alone(config: TeachConfig) -> None:
    train_teachers(config)
    stamps = {file: file.stat().st_mtime_ns for file in config.out.iterdir()}
    assert len(train_teachers(config)) == len(train_teachers(replace(config, experts=1))) == 2
    assert {file: file.stat().st_mtime_ns for file in config.out.iterdir()} == stamps


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 2, 3])
def test_a_killed_run_continues(
    config: TeachConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    """Killed just before the index is written for the last of `saves` times: files lie there that it does not name."""
    config = replace(config, encoder=WARM)
    whole = train_teachers(replace(config, out=tmp_path / "whole")).path
    calls = 0

    def save_or_die(store: TrajectoryStore) -> None:
        nonlocal calls
        calls += 1
        if calls == saves:
            raise KeyboardInterrupt
        save_index(store)

    save_index = TrajectoryStore.save_index
    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryStore, "save_index", save_or_die)
        with pytest.raises(KeyboardInterrupt):
            train_teachers(config)
    if saves == 1:
        with pytest.raises(InputError, match=r"expected a trajectory store, found no store\.json"):
            TrajectoryStore.open(config.out)
    else:
        assert len(TrajectoryStore.open(config.out)) == saves - 2
        assert (config.out / f"expert-00{saves - 2}.safetensors").exists()
    train_teachers(config)
    assert contents(config.out) == contents(whole)


@pytest.fixture(scope="module")
def warm(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> TeachConfig:
    """A whole store with a warmed-up tower, which no test changes."""
    config = teach_config(scenes, tmp_path_factory.mktemp("warm") / "store", encoder=WARM, keep_start=True)
    train_teachers(config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
@pytest.mark.parametrize(
    ("which", "taught_again"),
    [("expert-001", [1]), ("base-image", []), ("base-text", []), ("tower", []), ("tower expert-000 base-text", [0])],
)
def test_what_is_damaged_is_told_and_made_again(
    warm: TeachConfig,
    tmp_path: Path,
    which: str,
    taught_again: list[int],
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """To the same bits, and nothing that is whole."""
    shutil.copytree(warm.out, tmp_path / "store")
    config, before = replace(warm, out=tmp_path / "store", experts=1), contents(tmp_path / "store")
    hurt = sorted(path for part in which.split() for path in config.out.glob(f"{part}*"))
    for path in hurt:
        content = path.read_bytes()
        path.write_bytes(content[:-9] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        if harm == "gone":
            path.unlink()
    taught, train = list[int](), training.train_on_pairs

    def watched(
        student: Student, pairs: Pairs, texts: Tensor, config: TeachConfig, number: int, features: Tensor | None
    ) -> Any:
        taught.append(number)
        return train(student, pairs, texts, config, number, features)

    monkeypatch.setattr(side_by_side, "train_on_pairs", watched)
    store = train_teachers(config)
    assert [message for message in caplog.messages if "made again" in message] == [
        f"{path}: damaged or missing; made again" for path in hurt
    ]
    assert hurt and taught == taught_again and sorted(store.experts) == [0, 1]
    assert contents(config.out) == before


@pytest.mark.slow
def test_a_start_that_cannot_be_made_again_is_refused(
    warm: TeachConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(warm.out, tmp_path / "store")
    tower = tmp_path / "store" / "tower.safetensors"
    tower.unlink()
    other = {name: value + 1 for name, value in TrajectoryStore.open(warm.out).read_file(tower.name).items()}
    monkeypatch.setattr(teach, "warm_tower", lambda *_: other)
    with pytest.raises(InputError) as caught:
        train_teachers(replace(warm, out=tmp_path / "store"))
    assert str(caught.value) == (
        f"{tower}: expected to make the damaged file again, found other bits on this machine, or by this "
        "release; restore the file, or choose another --out"
    )


@pytest.mark.slow
def test_all_end_points(config: TeachConfig) -> None:
    every = train_teachers(replace(config, experts=1, endpoints="all"))
    assert every.endpoints == (1, 2, 3) == tuple(every.expert(0).displacements)
    thetas = trained(config, 0)
    for t in range(EPOCHS + 1):
        moved = every.expert(0).raw().point(t) - thetas[0]
        assert t == 0 or relative_error(moved, thetas[t] - thetas[0]) <= 4e-4
    # An end point changes nothing but what is kept.
    some = train_teachers(replace(config, experts=1, out=config.out.with_name("some")))
    for k in (2, 3):
        a, b = (store.expert(0).displacements[k] for store in (every, some))
        assert torch.equal(a.values, b.values) and torch.equal(a.norms, b.norms)
    assert torch.equal(every.expert(0).step_norms, some.expert(0).step_norms)


def test_fewer_pairs_than_a_batch_are_refused(config: TeachConfig) -> None:
    message = "scenes train: expected at least one batch of 49 pairs, found 48; lower batch_size"
    with pytest.raises(InputError, match=message):
        train_teachers(replace(config, batch_size=49))
    assert not config.out.exists()
    assert len(train_teachers(replace(config, batch_size=48, experts=1))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"encoder": replace(ENCODER, image_width=32)}, "encoder.image_width: 16 in the store, 32 asked for"),
        ({"encoder": replace(ENCODER, text_width=8)}, "encoder.text_width: 32 in the store, 8 asked for"),
        ({"encoder": replace(ENCODER, freeze_tower=True)}, "encoder.freeze_tower: False in the store, True asked for"),
    ],
)
def test_a_store_of_another_encoder_is_refused(config: TeachConfig, changed: dict[str, Any], message: str) -> None:
    train_teachers(replace(config, experts=1))
    with pytest.raises(
        InputError, match=rf"store: expected a store of these .+, found another encoder \({message}.*\)"
    ):
        train_teachers(replace(config, **changed))


@pytest.mark.slow
def test_the_width_of_heads_that_a_student_has_not_is_no_difference(config: TeachConfig) -> None:
    frozen = replace(config, encoder=replace(ENCODER, freeze_tower=True, head_width=8), out=config.out.with_name("f"))
    for one in (config, frozen):
        train_teachers(replace(one, experts=1))
    wider = replace(config, encoder=replace(ENCODER, head_width=8), experts=1)
    assert len(train_teachers(wider)) == 1
    with pytest.raises(InputError, match=r"another encoder \(encoder\.head_width: 8 in the store, None asked for\)"):
        train_teachers(replace(frozen, encoder=replace(ENCODER, freeze_tower=True)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 0.2}, r"lr: 0\.1 in the store, 0\.2 asked for"),
        ({"seed": 4}, "seed: 0 in the store, 4 asked for"),
        ({"epochs": 4}, "epochs: 3 in the store, 4 asked for"),
        ({"endpoints": (1, 3)}, r"endpoints: \[2, 3\] in the store, \[1, 3\] asked for"),
        ({"endpoints": "all"}, r"endpoints: \[2, 3\] in the store, all asked for"),
        ({"batch_size": 8, "temperature": 0.1}, "batch_size: 16 .+, 8 asked for; temperature: 0.07 .+, 0.1 asked for"),
    ],
)
def test_a_store_of_other_settings_is_refused(config: TeachConfig, changed: dict[str, Any], message: str) -> None:
    train_teachers(replace(config, experts=1))
    with pytest.raises(InputError, match=rf"expected .+, found different ones \({message}\); choose another --out"):
        train_teachers(replace(config, **changed))


@pytest.mark.slow
def test_a_store_of_before_there_was_a_precision_was_taught_in_fp32(config: TeachConfig) -> None:
    store = train_teachers(replace(config, experts=1))
    assert store.settings["precision"] == "fp32"
    del store.settings["precision"]
    store.save_index()
    assert "precision" not in TrajectoryStore.open(config.out).settings
    assert len(train_teachers(config)) == 2
    store = TrajectoryStore.open(config.out)
    store.settings["precision"] = "tf32"
    store.save_index()
    with pytest.raises(InputError, match=r"different ones \(precision: tf32 in the store, fp32 asked for\)"):
        train_teachers(config)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "error"), [({"compile": "on"}, 1e-4), ({"precision": "bf16"}, 0.1)])
def test_compiled_or_in_halves_it_is_the_same_training(
    config: TeachConfig, how: dict[str, Any], error: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Dropout and a last batch that is not full among it."""
    config = replace(config, dropout=0.3)
    plain, other = trained(config, 0), trained(replace(config, **how), 0)
    for before, after in zip(plain[1:], other[1:], strict=True):
        assert not torch.equal(before, after)
        assert relative_error(after - other[0], before - plain[0]) <= error
    assert not [record for record in caplog.records if record.name.startswith("ptmst")]


def test_heads_behind_a_frozen_tower_are_not_trained_in_halves(config: TeachConfig) -> None:
    frozen = replace(config, encoder=replace(config.encoder, freeze_tower=True), precision="bf16")
    with pytest.raises(InputError, match="precision bf16: expected an image tower that is trained, found a frozen one"):
        train_teachers(frozen)
    frozen = replace(frozen, precision="fp32", compile="on")
    with pytest.raises(InputError, match="compile on: expected an image tower that is trained, found a frozen one"):
        train_teachers(frozen)


def test_tf32_is_refused_on_a_cpu(config: TeachConfig) -> None:
    with pytest.raises(InputError, match=r"^precision tf32: expected a CUDA device, found none; use fp32 here$"):
        train_teachers(replace(config, precision="tf32"))
    assert not config.out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("held", [False, True])
def test_where_images_are_held_is_told_and_changes_nothing(
    config: TeachConfig, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train_teachers(replace(config, out=tmp_path / "whole")).path
    capfd.readouterr()
    monkeypatch.setattr(pixels.SHELF, "most_bytes", 0)  # where they would be held otherwise
    monkeypatch.setattr(devices, "free_bytes", lambda device: 2 * 24 * 3 * IMAGE**2 - (0 if held else 1))
    train_teachers(config)
    said = capfd.readouterr().err
    assert ("teach: the decoded images are more than half of the free memory" in said) != held
    assert contents(config.out) == contents(whole)


def test_weights_that_changed_behind_a_path_are_refused(config: TeachConfig, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    tower, _ = image_tower(ENCODER, IMAGE)
    torch.save(tower.state_dict(), path)
    config = replace(config, encoder=replace(ENCODER, image_weights=path), experts=1)
    store = train_teachers(config)
    image, _ = store.layers.group_sizes
    assert torch.equal(store.expert(0).base[:image], torch.cat([p.detach().flatten() for p in tower.parameters()]))
    torch.save({name: value + 1 for name, value in tower.state_dict().items()}, path)
    with pytest.raises(InputError, match=r"image_weights_sha256: \w+ in the store, \w+ asked for"):
        train_teachers(replace(config, experts=2))


def test_an_encoder_that_lost_the_layers_of_its_store_is_refused(config: TeachConfig) -> None:
    train_teachers(replace(config, experts=1))
    store = TrajectoryStore.open(config.out)
    store = replace(store, settings={**store.settings, "encoder": {**store.settings["encoder"], "image_width": 32}})
    with pytest.raises(
        InputError, match=r"expected the layers of convnet \+ hashed \([\d,]+ parameters\), found [\d,]+"
    ):
        store.student((0,))


def test_divergence_is_told(config: TeachConfig) -> None:
    with pytest.raises(Diverged, match=r"^expert 0, epoch 1: the loss is nan at lr 1e\+20; lower teach lr$"):
        train_teachers(replace(config, lr=1e20))
    assert len(TrajectoryStore.open(config.out)) == 0


# Data


def rewrite(path: Path, change: dict[str, Any]) -> None:
    entries = json.loads(path.read_text())
    entries[5].update(change)
    path.write_text(json.dumps(entries))


def test_pairs_come_back_as_they_were_taught(config: TeachConfig) -> None:
    pairs, texts = train_teachers(replace(config, experts=1)).recipe.training_pairs()
    expected, embeds = train_pairs(config)
    assert pairs.captions == expected.captions and torch.equal(texts, embeds)


def test_data_that_changed_since_is_refused(own: Path, tmp_path: Path) -> None:
    store = train_teachers(teach_config(own, tmp_path / "store", experts=1))
    rewrite(own / "scenes_train.json", {"caption": "something else"})
    with pytest.raises(
        InputError,
        match="scenes: expected the pairs that the experts were trained on, found different ones",
    ):
        store.recipe.training_pairs()
    with pytest.raises(InputError, match=r"found different ones \(data_fingerprint: \w+ in the store, \w+ asked for\)"):
        train_teachers(teach_config(own, tmp_path / "store"))


def test_a_text_tower_that_changed_since_is_refused(config: TeachConfig) -> None:
    store = train_teachers(replace(config, experts=1))
    real = random_pairs(store, 4, 0.1, 0)
    store = replace(store, settings={**store.settings, "text_fingerprint": "hashed:of old"})
    message = r"text_tower hashed: expected hashed:of old, as for the experts, found hashed:32; restore its weights"
    for read in (
        lambda store: store.recipe.training_pairs(),
        lambda store: evaluate_experts(store, EvaluateConfig(device="cpu")),
    ):
        with pytest.raises(InputError, match=message):
            read(store)
    with pytest.raises(InputError, match=message):
        evaluate(replace(real, settings=store.settings), EvaluateConfig(device="cpu"))


def test_an_image_that_is_not_there_is_refused(own: Path, tmp_path: Path) -> None:
    rewrite(own / "scenes_train.json", {"image": "images/train/gone.png"})
    with pytest.raises(InputError, match=r"scenes_train\.json: .+ found 1 missing, the first images/train/gone\.png; "):
        train_teachers(teach_config(own, tmp_path / "store"))


@pytest.mark.slow
def test_a_torn_image_is_refused(own: Path, tmp_path: Path) -> None:
    whole, torn = own / "images" / "train" / "whole.jpg", own / "images" / "train" / "torn.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(whole)
    torn.write_bytes(whole.read_bytes()[:-900])
    rewrite(own / "scenes_train.json", {"image": "images/train/whole.jpg"})
    assert len(train_teachers(teach_config(own, tmp_path / "store", experts=1))) == 1
    rewrite(own / "scenes_train.json", {"image": "images/train/torn.jpg"})
    with pytest.raises(InputError, match=r"images/train/torn\.jpg: expected a whole image, found .+; replace the file"):
        train_teachers(teach_config(own, tmp_path / "other"))


# Warm-up


def test_warm_up_teaches_and_is_the_same_for_a_seed(scenes: Path) -> None:
    pairs = load_pairs("scenes", scenes, "warmup", IMAGE)
    one, same, other = (warm_tower(WARM, pairs, seed, torch.device("cpu")) for seed in (0, 0, 1))
    cold = image_tower(WARM, IMAGE)[0].state_dict()
    assert sorted(one) == sorted(cold)
    for name, value in cold.items():
        assert torch.equal(one[name], same[name])
        assert not torch.equal(one[name], value) and not torch.equal(one[name], other[name])


def test_warm_up_is_a_plain_training_loop(scenes: Path) -> None:
    pairs = load_pairs("scenes", scenes, "warmup", IMAGE)
    found = warm_tower(replace(WARM, warmup_epochs=3), pairs, 0, torch.device("cpu"))
    tower, width = image_tower(WARM, IMAGE)
    labels = torch.from_numpy(words_by_hand(pairs)[1]).float()
    with seeded(0, "warm-up"):
        words = nn.Linear(labels.shape[1], width, bias=False)
    optimizer = torch.optim.Adam([*tower.parameters(), *words.parameters()], lr=2e-3)
    images = plain_images(pairs)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 + math.cos(math.pi * epoch / 3))
        order = torch.randperm(16, generator=generator(0, "warm-up", epoch))
        z, t = F.normalize(tower(images[order]), dim=1), F.normalize(words(labels[order]), dim=1)
        logits, own = z @ t.T / 0.07, torch.arange(16)
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in tower.state_dict().items():
        assert relative_error(found[name], value) <= 1e-4, name


@pytest.mark.slow
def test_all_experts_start_from_the_warm_tower(config: TeachConfig) -> None:
    store = TrajectoryStore.open(train_teachers(replace(config, encoder=WARM)).path)
    warm = warm_tower(WARM, load_pairs("scenes", config.data.folder, "warmup", IMAGE), 0, torch.device("cpu"))
    kept, (image, _) = store.tower, store.layers.group_sizes
    assert kept is not None and all(torch.equal(kept[name], value) for name, value in warm.items())
    tower, _ = image_tower(ENCODER, IMAGE, warm)
    expected = torch.cat([p.detach().flatten() for p in tower.parameters()])
    for number in range(2):
        assert torch.equal(store.expert(number).base[:image], expected)
    assert len(list(store.path.glob("base-image-*"))) == 1 and not list(store.path.glob("base-text-*"))
    assert torch.equal(store.student((9, "another")).flatten()[:image], expected)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_starts_are_stored_where_they_are_asked_for(config: TeachConfig, frozen: bool, tmp_path: Path) -> None:
    config = replace(config, encoder=replace(ENCODER, freeze_tower=frozen))
    drawn = train_teachers(config)
    kept = train_teachers(replace(config, out=tmp_path / "kept", keep_start=True))
    for number in range(2):
        start = make_student(config.encoder, IMAGE, TEXT_WIDTH, (config.seed, "expert", number)).flatten()
        for store in (drawn, kept):
            found = TrajectoryStore.open(store.path).expert(number)
            assert torch.equal(found.base, start)
            assert torch.equal(found.displacements[3].values, store.expert(number).displacements[3].values)
    files = [len(list(store.path.glob("base-*"))) for store in (drawn, kept)]
    assert files == ([0, 4] if frozen else [1, 3])
    # What the other store lacks or has decides nothing: either may grow.
    assert len(train_teachers(replace(config, experts=3, keep_start=True))) == 3


def test_a_store_without_warm_up_keeps_no_tower(config: TeachConfig) -> None:
    assert train_teachers(replace(config, experts=1)).tower is None


def test_warm_up_without_its_split_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "scenes", warmup=0)
    with pytest.raises(InputError, match=r"scenes_warmup\.json: expected an annotation file, found none"):
        train_teachers(teach_config(root, tmp_path / "store", encoder=WARM))


def words_by_hand(pairs: Pairs) -> tuple[list[str], np.ndarray]:
    """Words and bigrams that 1–90 % of all images have among their captions, in order; and which image has which."""
    images = len(pairs.image_names)
    terms: list[set[str]] = [set() for _ in range(images)]
    documents = [""] * images
    for caption, image in zip(pairs.captions, pairs.image_of_text.tolist(), strict=True):
        documents[image] += f" {caption}"
    for found, document in zip(terms, documents, strict=True):
        words = [
            "".join(c for c in word if c.isalnum()) for word in document.replace("-", " ").replace(",", " ").split()
        ]
        words = [word for word in words if len(word) > 1]
        found.update(words)
        found.update(f"{words[i]} {words[i + 1]}" for i in range(len(words) - 1))
    shares = {term: sum(term in found for found in terms) / images for term in set().union(*terms)}
    vocabulary = sorted(term for term, share in shares.items() if 0.01 <= share <= 0.9)
    return vocabulary, np.array([[float(term in found) for term in vocabulary] for found in terms])


def test_caption_words(scenes: Path) -> None:
    pairs = load_pairs("scenes", scenes, "warmup", IMAGE)
    vocabulary, expected = words_by_hand(pairs)
    found = caption_words(pairs)
    assert len(vocabulary) > 30 and 0 < expected.mean() < 0.5
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected)


# The baseline


@pytest.mark.parametrize("seed", range(5))
def test_a_random_subset_is_of_distinct_images(scenes: Path, seed: int) -> None:
    pairs = load_pairs("scenes", scenes, "train", IMAGE)
    whole = random_subset(pairs, seed, 24)
    assert whole.dtype == torch.int64
    assert sorted(pairs.image_of_text[whole].tolist()) == list(range(24))
    for count in (0, 1, 7, 23):
        assert torch.equal(random_subset(pairs, seed, count), whole[:count])
    assert not torch.equal(whole, random_subset(pairs, seed + 1, 24))


def test_random_subsets_are_even(scenes: Path) -> None:
    pairs = load_pairs("scenes", scenes, "train", IMAGE)
    counts = torch.stack([random_subset(pairs, seed, 6).bincount(minlength=48) for seed in range(400)]).sum(0)
    # Each text is drawn with probability 1/8: 50 of 400 times, deviation 6.6.
    assert counts.sum() == 2400 and (counts - 50).abs().max() <= 5 * 6.6


def test_more_pairs_than_images_are_refused(scenes: Path) -> None:
    pairs = load_pairs("scenes", scenes, "train", IMAGE)
    with pytest.raises(InputError, match="pairs: expected at most the 24 images of scenes train, found 25"):
        random_subset(pairs, 0, 25)


def test_random_pairs_are_real_ones(config: TeachConfig, tmp_path: Path) -> None:
    store = train_teachers(replace(config, encoder=WARM, experts=1))
    found = random_pairs(store, 6, 0.3, seed=2)
    found.save(tmp_path / "set")
    found = DistilledSet.load(tmp_path / "set")
    pairs, texts = train_pairs(config)
    (phase,), images = found.phases, plain_images(pairs)
    chosen = []
    for caption, image, text in zip(phase.captions, phase.pairs.images, phase.pairs.texts, strict=True):
        match = [
            j
            for j in range(len(pairs))
            if pairs.captions[j] == caption and torch.allclose(images[pairs.image_of_text[j]], image, atol=1e-6)
        ]
        assert match and torch.equal(texts[match[0]], text)
        chosen.append(int(pairs.image_of_text[match[0]]))
    assert len(set(chosen)) == 6 == found.num_pairs
    assert torch.equal(phase.pairs.similarity.dense(), torch.eye(6))
    assert phase.pairs.lr.tolist() == phase.last_lr.tolist() == pytest.approx([0.3, 0.3])
    assert found.provenance["method"] == "random" and found.provenance["store_sha256"] == store.fingerprint
    assert found.settings == store.settings
    kept = store.tower
    assert kept is not None and found.tower is not None
    assert all(torch.equal(found.tower[name], value) for name, value in kept.items())


def test_a_folder_that_is_being_written_is_refused(config: TeachConfig) -> None:
    message = r"another process is writing a trajectory store here \(.+\); wait for its end, or choose"
    with folders.claimed(Path(config.out), FOLDER), pytest.raises(InputError, match=message):
        train_teachers(config)
    assert list(Path(config.out).iterdir()) == []


def test_a_store_that_lacks_nothing_is_read_while_another_process_has_it(config: TeachConfig) -> None:
    store = train_teachers(replace(config, experts=1))
    with folders.claimed(Path(config.out), FOLDER):
        assert train_teachers(replace(config, experts=1)).fingerprint == store.fingerprint
        with pytest.raises(InputError, match="another process is writing a trajectory store here"):
            train_teachers(replace(config, experts=2))


def test_another_coding_is_refused(config: TeachConfig) -> None:
    train_teachers(replace(config, experts=1))
    with pytest.raises(
        InputError, match=r"found different ones \(coding: fp16 in the store, int8 asked for\); choose another"
    ):
        train_teachers(replace(config, experts=1, coding="int8"))


def test_pictures_of_which_nothing_is_seen_are_refused_before_anything_is_written(config: TeachConfig) -> None:
    """All transparent, with any colors beneath; another color is enough to be seen."""
    images = sorted((config.data.folder / "images" / "train").iterdir())
    for number, path in enumerate(images):
        hidden = np.random.default_rng(number).integers(0, 255, (IMAGE, IMAGE, 4), dtype=np.uint8)
        hidden[..., 3] = 0
        Image.fromarray(hidden).save(path)
    with pytest.raises(InputError) as caught:
        train_teachers(config)
    root = config.data.folder
    assert str(caught.value) == (
        f"{root}: expected training images that show something, found all 24 of the same single color; "
        f"`ptmst data check scenes --root {root}` tells more"
    )
    assert not Path(config.out).exists()
    for path in images[-8:]:
        Image.new("RGB", (IMAGE, IMAGE), (250, 255, 255)).save(path)
    assert len(train_teachers(replace(config, experts=1))) == 1
