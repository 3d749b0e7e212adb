"""Published replay buffers: the experts they hold, and what is refused; and what `inspect` says of everything."""

from __future__ import annotations

import io
import itertools
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import beta, relative_error
from ptmst import DistillConfig, LayerTable, Phase, TrajectoryMatchingLoss, TrajectoryStore, distill, evaluate
from ptmst.cli import main
from ptmst.cli.exchange import Import
from ptmst.cli.inspection import inspect
from ptmst.config import DataConfig, EncoderConfig, EvaluateConfig, ImportConfig
from ptmst.errors import InputError
from ptmst.exchange.distilled_sets import import_set
from ptmst.exchange.export import export
from ptmst.exchange.published_recipe import published_recipe
from ptmst.exchange.replay_buffers import import_buffers
from ptmst.students.heads import make_student
from ptmst.students.text_towers import text_tower
from ptmst.support import folders
from ptmst.support.published import load_published
from ptmst.synthetic.distilled_set import FOLDER
from tiny import DISTILL, ENCODER, tiny_store

EPOCHS, EXPERTS = 4, 2
Buffer = list[list[list[Tensor]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, EncoderConfig]:
    """The data of the tiny store, and its encoder without a warm-up."""
    return tiny_store(tmp_path_factory).recipe.data, replace(ENCODER, warmup_epochs=0)


def buffers(world: tuple[DataConfig, EncoderConfig]) -> tuple[Buffer, Buffer]:
    """Made as the published code makes them: lists of `parameters()` after each epoch, image and text apart."""
    _, encoder = world
    student = make_student(encoder, 16, text_tower(encoder).width, (0,), None)
    images, texts = student.modules[:2]
    draw = torch.Generator().manual_seed(0)

    def walked(module: nn.Module) -> list[list[Tensor]]:
        at = [p.detach().clone() for p in module.parameters() if p.requires_grad]
        stamps = [[p.clone() for p in at]]
        for _ in range(EPOCHS):
            at = [p + 0.02 * torch.randn(p.shape, generator=draw) for p in at]
            stamps.append([p.clone() for p in at])
        return stamps

    return [walked(images) for _ in range(EXPERTS)], [walked(texts) for _ in range(EXPERTS)]


@pytest.fixture
def files_of(world: tuple[DataConfig, EncoderConfig], tmp_path: Path) -> tuple[ImportConfig, tuple[Buffer, Buffer]]:
    made = buffers(world)
    config = ImportConfig(
        out=tmp_path / "store",
        images=tuple(tmp_path / f"img_replay_buffer_{n}.pt" for n in range(EXPERTS)),
        texts=tuple(tmp_path / f"txt_replay_buffer_{n}.pt" for n in range(EXPERTS)),
        data=world[0],
        encoder=world[1],
    )
    for number in range(EXPERTS):
        torch.save([made[0][number]], config.images[number])
        torch.save([made[1][number]], config.texts[number])
    return config, made


def flat(stamp: list[Tensor], other: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in [*stamp, *other]]).double()


@pytest.mark.parametrize(("coding", "error"), [("fp16", 4e-4), ("int8", 9e-3)])
def test_experts_come_back(files_of: Any, coding: Any, error: float) -> None:
    config, (images, texts) = files_of
    store = import_buffers(replace(config, coding=coding))
    assert (len(store), store.epochs, store.endpoints, store.coding) == (EXPERTS, EPOCHS, (1, 2, 3, 4), coding)
    again = TrajectoryStore.open(config.out)
    for number in range(EXPERTS):
        points = [flat(a, b) for a, b in zip(images[number], texts[number], strict=True)]
        expert = again.expert(number)
        assert torch.equal(expert.base.double(), points[0])
        for k in range(1, EPOCHS + 1):
            moved = expert.displacements[k].decode(store.layers)
            assert relative_error(moved, points[k] - points[0]) <= error
        norms = torch.stack(
            [
                torch.stack([part.norm() for part in (b - a).split(store.layers.sizes)])
                for a, b in itertools.pairwise(points)
            ]
        )
        assert relative_error(expert.step_norms, norms) <= 1e-6
        assert relative_error(expert.shortcut(3).beta, torch.from_numpy(beta(norms.numpy(), 3))) <= 1e-6
        assert again.experts[number]["from"] == [config.images[number].name, config.texts[number].name]


def test_a_buffer_that_is_interpolated_already_gives_the_same_shortcut(files_of: Any) -> None:
    """Its timestamps lie on the line, at the β of the raw one."""
    config, (images, texts) = files_of
    raw = import_buffers(config).expert(0).shortcut(EPOCHS)
    for paths, of in ((config.images, images), (config.texts, texts)):
        first, last = of[0][0], of[0][-1]
        count = len(first)
        begin = 0 if paths is config.images else raw.layers.num_layers - count
        line = [
            [a + raw.beta[t][begin + n] * (b - a) for n, (a, b) in enumerate(zip(first, last, strict=True))]
            for t in range(EPOCHS + 1)
        ]
        torch.save([line], paths[0])
    straight = replace(config, out=config.out.with_name("straight"), images=config.images[:1], texts=config.texts[:1])
    found = import_buffers(straight).expert(0).shortcut(EPOCHS)
    assert relative_error(found.beta, raw.beta) <= 1e-4
    assert relative_error(found.point(2), raw.point(2)) <= 1e-4


def test_several_trajectories_in_one_file(files_of: Any) -> None:
    config, (images, texts) = files_of
    torch.save(images, config.images[0])
    torch.save(texts, config.texts[0])
    whole = import_buffers(replace(config, images=config.images[:1], texts=config.texts[:1], endpoints=(2, 4)))
    assert (len(whole), whole.endpoints) == (EXPERTS, (2, 4))
    assert torch.equal(whole.expert(1).base.double(), flat(images[1][0], texts[1][0]))


def test_a_buffer_of_one_network(tmp_path: Path) -> None:
    """MTT's: one list of parameters, no encoder of ours; it serves the matching loss."""
    stamps = [[torch.randn(4, 3), torch.randn(4)] for _ in range(3)]
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([stamps], path)
    store = import_buffers(ImportConfig(out=tmp_path / "store", networks=(path,)))
    expected = LayerTable(("network.0", "network.1"), ((4, 3), (4,)), (0, 0), ("network",))
    assert store.layers == expected
    span = store.expert(0).raw().span(0, 2)
    theta = flat(stamps[1], []).float()
    found = TrajectoryMatchingLoss(store.layers)(theta, span).loss
    start, end = flat(stamps[0], []), flat(stamps[2], [])
    assert relative_error(found, ((theta - end) ** 2).sum() / ((start - end) ** 2).sum()) <= 1e-3


@pytest.mark.slow
def test_from_a_published_buffer_to_a_published_set(files_of: Any, tmp_path: Path) -> None:
    """Import, two outer steps, export; read back by the published reader's rules, which stand here."""
    config, _ = files_of
    store = import_buffers(replace(config, endpoints=(2, 3)))
    settings: DistillConfig = replace(DISTILL, phases=(Phase(8, 2, (0, 2)), Phase(10, 3, (1, 3))), steps=2)
    distilled = distill(settings, store)
    written = export(distilled, tmp_path / "out", "ptm-st")
    assert sorted(path.name for path in written) == ["distilled_0_2.pt", "distilled_1_2.pt"]
    for number, phase in enumerate(distilled.phases):
        kept = torch.load(tmp_path / "out" / f"distilled_{number}_2.pt", map_location="cpu", weights_only=True)
        images, texts = kept["image"].to("cpu"), kept["text"].to("cpu")
        (labels,) = [p.to("cpu") for p in kept["similarity_params"]]
        assert torch.equal(images, phase.pairs.images) and torch.equal(texts, phase.pairs.texts)
        assert torch.equal(labels, phase.pairs.similarity.dense())
        assert torch.equal(kept["similarity_mat"], labels)
        rates = [kept["syn_lr_img"].item(), kept["syn_lr_txt"].item()]
        assert rates == phase.last_lr.tolist()
        assert len(images) == len(texts) == len(labels) == settings.phases[number].pairs
    theirs = import_set(replace(config, images=(), texts=(), distilled=tuple(written), out=tmp_path / "theirs"))
    scores = evaluate(theirs, EvaluateConfig(students=1, epochs=2, lr_drop=1, every=1, batch_size=5, device="cpu"))
    assert theirs.num_pairs == 18 and theirs.phases[0].captions == distilled.phases[0].captions
    assert 0 <= scores.mean() <= 100


def test_published_pictures_have_clips_mean_whatever_the_tower(files_of: Any) -> None:
    config, _ = files_of
    data = replace(config.data, mean=None, std=None)
    encoder = replace(config.encoder, image_tower="timm:test_nfnet")
    recipe, _ = published_recipe(replace(config, data=data, encoder=encoder))
    assert recipe.data.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert recipe.data.std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    asked, _ = published_recipe(replace(config, data=replace(data, mean=(0.1, 0.2, 0.3)), encoder=encoder))
    assert asked.data.mean == pytest.approx((0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("held", "content", "what"),
    [
        ("distilled.json", "a user's own", "a distilled set"),
        ("run.json", "a user's own", "a distilled set"),
        ("store.json", "a user's own", "a trajectory store"),
        ("ablation.json", '{\n "format": "ptmst-ablation",\n "version": 1\n}', "an ablation"),
    ],
)
def test_an_import_overwrites_no_set_and_no_run(tmp_path: Path, held: str, content: str, what: str) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / held).write_text(content)
    with pytest.raises(InputError, match=rf"set: holds {what} already; choose another --out"):
        Import(ImportConfig(out=out, distilled=(tmp_path / "d.pt",))).run()
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [(held, content)]


def test_an_import_waits_for_nobody(tmp_path: Path) -> None:
    with folders.claimed(tmp_path / "set", FOLDER), pytest.raises(InputError, match="another process"):
        Import(ImportConfig(out=tmp_path / "set", distilled=(tmp_path / "d.pt",))).run()


# Refused


class Executed:
    """A pickle that would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_nothing_in_a_file_is_executed(files_of: Any, tmp_path: Path, how: str) -> None:
    config, _ = files_of
    evil = [[[torch.zeros(2)], Executed(tmp_path / "trace")]]
    if how == "torch":
        torch.save(evil, config.images[0])
    else:
        config.images[0].write_bytes(pickle.dumps(evil))
    what = "what would have to be executed" if how == "torch" else "something else"
    message = f"expected tensors alone, as torch.save writes them, found {what}; it was not read"
    with pytest.raises(InputError, match=re.escape(f"{config.images[0]}: {message}")) as caught:
        import_buffers(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trace").exists()
    assert not (config.out / "store.json").exists()


def changed(change: Callable[[Buffer], Any]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        buffer = torch.load(path, weights_only=True)
        found = change(buffer)
        torch.save(found if isinstance(found, list | dict) else buffer, path)

    return apply


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "expected a file of torch.save, found none; check the path"),
        (lambda path: path.write_bytes(b""), "expected a file of torch.save, found a damaged one"),
        (
            lambda path: path.write_text("nonsense"),
            "expected tensors alone, as torch.save writes them, found something else; it was not read",
        ),
        (changed(lambda b: {"image": b}), "expected a replay buffer (trajectories of timestamps of tensors), found"),
        (changed(lambda b: b[0]), "expected a replay buffer (trajectories of timestamps of tensors), found"),
        (changed(lambda b: [b[0][:1]]), "expected a replay buffer (trajectories of timestamps of tensors), found"),
        (changed(lambda b: [b[0], b[0]]), "expected 2 trajectories as in img_replay_buffer_1.pt, found 1"),
        (changed(lambda b: [b[0][:-1]]), "expected 4 timestamps as in img_replay_buffer_1.pt, found 5"),
        (changed(lambda b: b[0][2].pop()), "of shape"),
        (changed(lambda b: b[0][2].append(torch.zeros(3))), "of shape"),
        (changed(lambda b: b[0][3][0].fill_(torch.nan)), "expected finite parameters, found NaN or infinity"),
    ],
)
def test_what_is_no_buffer_is_refused(files_of: Any, harm: Callable[[Path], None], message: str) -> None:
    config, _ = files_of
    harm(config.images[1])
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        import_buffers(config)
    assert "\n" not in str(caught.value)


def test_other_encoders_are_refused(files_of: Any) -> None:
    config, _ = files_of
    wider = replace(config, encoder=replace(config.encoder, image_width=24))
    with pytest.raises(InputError, match=r"expected image\..* of shape \(6, .*found \(4, .*name the encoder it was"):
        import_buffers(wider)


def test_settings_that_do_not_go_together_are_refused(files_of: Any, tmp_path: Path) -> None:
    config, _ = files_of
    for change, message in (
        ({"texts": config.texts[:1]}, "texts: expected one buffer for each of 2 image buffers, found 1; name both"),
        ({"networks": config.texts}, "networks: expected them alone, found images or texts beside them"),
        ({"distilled": config.texts}, "distilled: expected them alone, found buffers beside them"),
        ({"images": (), "texts": ()}, "images: expected buffers to import, found none; name img_replay"),
        ({"endpoints": (0,)}, "endpoints: expected epochs from 1, found 0; raise it"),
        ({"endpoints": (2, 9)}, "expected an epoch 9 to keep, found 4 epochs; lower --endpoints, or keep all"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            import_buffers(replace(config, **change))
    import_buffers(config)
    with pytest.raises(InputError, match="store: holds a trajectory store already; choose another --out"):
        import_buffers(config)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_an_import_is_whole_or_absent(files_of: Any, stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store of the first experts alone would distill without a word."""
    config, _ = files_of
    good = config.texts[1].read_bytes()
    with monkeypatch.context() as patch:
        if stopped:
            patch.setattr(TrajectoryStore, "save_index", interrupted)
        else:
            config.texts[1].write_bytes(b"")
        with pytest.raises(KeyboardInterrupt if stopped else InputError):
            import_buffers(config)
    assert not config.out.exists()
    config.texts[1].write_bytes(good)
    assert len(import_buffers(config)) == EXPERTS


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_store_of_one_network_serves_no_students(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save([[[torch.randn(50)], [torch.randn(50)]]], tmp_path / "replay_buffer_0.pt")
    store = import_buffers(ImportConfig(out=tmp_path / "store", networks=(tmp_path / "replay_buffer_0.pt",)))
    folder, out = str(store.path), str(tmp_path / "out")
    for command in (
        ["distill", "--store", folder, "--out", out, "--phases", "4:1:0-1", "--batch-size", "2"],
        ["subset", "--store", folder, "--out", out, "--pairs", "3"],
        ["evaluate", "--set", folder],
    ):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert "expected a store or set with an encoder and data, found one without" in err
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_no_flipped_byte_of_a_buffer_goes_unseen(tmp_path: Path) -> None:
    path = tmp_path / "replay_buffer_0.pt"
    torch.save([[[torch.randn(50)], [torch.randn(50)]]], path)
    whole, expected = path.read_bytes(), load_published(path)
    draw, seen = random.Random(0), 0
    for _ in range(1000):
        broken = bytearray(whole)
        broken[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            found = load_published(path)
        except InputError:
            seen += 1
            continue
        for a, b in zip(found[0], expected[0], strict=True):
            assert torch.equal(a[0], b[0])
    assert seen >= 500


# Inspected


def shown(path: Path, verify: bool = False) -> dict[str, str]:
    return dict(inspect(path, verify))


def test_a_store_is_described(files_of: Any) -> None:
    config, _ = files_of
    store = import_buffers(replace(config, endpoints=(2, 3)))
    found = shown(config.out, verify=True)
    assert found["kind"] == "trajectory store, fp16"
    assert (found["experts"], found["epochs"]) == ("0, 1", "4, end points stored: 2, 3")
    assert found["parameters"] == f"{store.layers.num_params:,} in {store.layers.num_layers} layers"
    assert found["verified"] == f"{len(store.hashes)} files have the hashes of the index"
    assert found["sha256"] == store.fingerprint
    walked = store.expert(0).step_norms.double().sum(0)
    of_images = walked[[g == 0 for g in store.layers.group_of_layer]].square().sum().sqrt()
    assert f"{of_images:.3g}," in found["expert 0"]
    name = next(iter(store.hashes))
    content = bytearray((config.out / name).read_bytes())
    content[-1] ^= 1
    (config.out / name).write_bytes(bytes(content))
    with pytest.raises(InputError, match=f"{re.escape(name)}"):
        inspect(config.out, verify=True)


@pytest.mark.slow
def test_a_set_and_a_run_are_described(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    store = tiny_store(tmp_path_factory)
    distill(replace(DISTILL, out=tmp_path / "set", steps=1), store)
    found = shown(tmp_path / "set", verify=True)
    assert (found["kind"], found["pairs"]) == ("distilled set", "18 in 2 phases")
    assert re.match(r"8 pairs, images 3×\d+×\d+, texts 32|8 pairs, images 3×", found["phase 1"])
    assert found["store_sha256"] == store.fingerprint
    assert found["verified"].endswith("files have the hashes of the index")
    (tmp_path / "set" / "distilled.json").unlink()
    assert shown(tmp_path / "set")["kind"] == "unfinished distillation"


def test_published_files_are_described(files_of: Any, tmp_path: Path) -> None:
    config, (images, _) = files_of
    found = shown(config.images[0])
    assert found["kind"] == "published replay buffer"
    assert (found["trajectories"], found["timestamps"]) == ("1", "5")
    count = sum(tensor.numel() for tensor in images[0][0])
    assert found["network"] == f"{len(images[0][0])} tensors, {count:,} parameters"
    torch.save(
        {"image": torch.zeros(2, 3, 4, 4), "text": torch.zeros(2, 5), "syn_lr_img": torch.tensor(0.25)},
        tmp_path / "d.pt",
    )
    found = shown(tmp_path / "d.pt")
    assert (found["kind"], found["image"], found["syn_lr_img"]) == (
        "published distilled set",
        "float32 2×3×4×4",
        "0.25",
    )


def test_tensor_files_and_strangers(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tiny_store(tmp_path_factory)
    name = store.experts[0]["file"]
    found = shown(store.path / name, verify=True)
    assert found["kind"] == "safetensors"
    assert found["step_norms"] == f"F32 {store.epochs}×{store.layers.num_layers}"
    assert "verified" in found
    for content, message in ((None, "expected a file or folder, found none; check the path"), (b"text", "torch.save")):
        path = tmp_path / "strange"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            inspect(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"expected a store \(store.json\), a distilled set \(distilled.json\) or a"):
        inspect(tmp_path / "folder")
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    (tmp_path / "tensor.pt").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"expected a replay buffer or a distilled set of torch.save, found float32 3"):
        inspect(tmp_path / "tensor.pt")
