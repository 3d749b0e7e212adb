"""A frozen tower that was met before is known by its identity and width, and built only to see with."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptmst import (
    DataConfig,
    DistilledSet,
    EncoderConfig,
    EvaluateConfig,
    InputError,
    TeachConfig,
    evaluate,
    random_pairs,
    train_teachers,
    write_scenes,
)
from ptmst.students import frozen
from ptmst.students.frozen import FrozenTower, frozen_tower
from ptmst.students.heads import make_student
from ptmst.students.image_towers import image_tower

CONFIG = EncoderConfig(image_width=16, freeze_tower=True)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The towers that were built, by name."""
    names: list[str] = []

    def spy(config: EncoderConfig, *rest: Any) -> tuple[nn.Module, int]:
        names.append(config.image_tower)
        return image_tower(config, *rest)

    monkeypatch.setattr(frozen, "image_tower", spy)
    return names


def images(size: int = 16) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_it_is_built_to_be_known_and_later_to_see(built: list[str]) -> None:
    first, width = frozen_tower(CONFIG, 16)
    assert len(built) == 1 and width == 64
    again, same_width = frozen_tower(CONFIG, 16)
    assert same_width == width and again.identity(16) == first.identity(16) and len(built) == 1
    expected, _ = image_tower(CONFIG, 16)
    assert torch.equal(again(images()), expected(images())) and len(built) == 2
    again(images())
    assert len(built) == 2
    assert not any(p.requires_grad for p in again.built().tower.parameters())


def test_students_of_a_known_tower_are_the_same(built: list[str]) -> None:
    first = make_student(CONFIG, 16, 8, (0,))
    again = make_student(CONFIG, 16, 8, (0,))
    assert len(built) == 1 and torch.equal(first.flatten(), again.flatten()) and first.layers == again.layers
    assert torch.equal(again.features(images()), first.features(images())) and len(built) == 2


def test_it_is_another_for_all_that_decides_it(built: list[str], tmp_path: Path) -> None:
    towers = [frozen_tower(CONFIG, 16), frozen_tower(replace(CONFIG, image_width=8), 16)]
    other = {name: value + 0.1 for name, value in towers[0][0].built().tower.state_dict().items()}
    towers.append(frozen_tower(CONFIG, 16, other))
    path = tmp_path / "weights.pt"
    for shift in (0.2, 0.3):
        torch.save({name: value + shift for name, value in other.items()}, path)
        towers.append(frozen_tower(replace(CONFIG, image_weights=path), 16))
    assert len(built) == 5 and len({tower.identity(16) for tower, _ in towers}) == 5


@pytest.mark.parametrize("times", [1, 2])
def test_weights_that_cannot_be_read_are_refused_each_time(times: int, tmp_path: Path) -> None:
    frozen_tower(CONFIG, 16)
    for _ in range(times):
        with pytest.raises(InputError, match=r"none.pt: expected weights of the image tower, found no such file"):
            frozen_tower(replace(CONFIG, image_weights=tmp_path / "none.pt"), 16)


def test_identity_tells_layers_weights_and_what_they_do() -> None:
    class Scaled(nn.Linear):
        scale = 1.0

        def forward(self, x: Tensor) -> Tensor:
            seen: Tensor = super().forward(x.flatten(1))
            return self.scale * seen

    def of(scale: float, shift: float, *more: nn.Module) -> str:
        torch.manual_seed(0)
        layer = Scaled(12, 2)
        layer.scale = scale
        with torch.no_grad():
            layer.bias.add_(shift)
        return FrozenTower.of(nn.Sequential(layer, *more)).identity(2)

    assert of(1, 0) == of(1, 0)
    assert len({of(1, 0), of(2, 0), of(1, 1), of(1, 0, nn.Identity())}) == 4


def test_it_is_sent_to_a_device_before_it_is_built() -> None:
    tower, on_cpu = nn.Linear(2, 2), nn.Linear(2, 2)
    later = FrozenTower(lambda: frozen.Forms(tower, on_cpu), "known")
    later.to("meta")
    assert not tower.weight.is_meta and later.identity(2) == "known"
    assert later.built().tower.weight.is_meta and not on_cpu.weight.is_meta
    later.to("meta")
    assert later(torch.empty(1, 2, device="meta")).is_meta


@pytest.mark.slow
def test_an_evaluation_of_what_is_known_imports_no_library_of_towers(tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", train=24, val=4, test=6, warmup=0, image_size=32, seed=1)
    encoder = EncoderConfig(image_tower="timm:resnet18", text_width=16, freeze_tower=True)
    data = DataConfig(name="scenes", root=tmp_path / "data", image_size=32)
    store = train_teachers(
        TeachConfig(tmp_path / "store", data, encoder, experts=1, epochs=1, batch_size=8, endpoints=(1,))
    )
    random_pairs(store, 4, 0.1, 0).save(tmp_path / "set")
    before = evaluate(DistilledSet.load(tmp_path / "set"), EvaluateConfig(students=2, epochs=2))
    code = """
import json, sys
from ptmst import DistilledSet, EvaluateConfig, evaluate
scores = evaluate(DistilledSet.load(sys.argv[1]), EvaluateConfig(students=2, epochs=2))
print(json.dumps([scores.students, sorted({"timm", "open_clip", "transformers", "torchvision"} & set(sys.modules))]))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [list(before.students), []]
