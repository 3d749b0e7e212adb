"""Image towers of open_clip: gradients through their attention, weights of whole CLIP models, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from oracles import relative_error
from ptmst.config import EncoderConfig
from ptmst.errors import InputError
from ptmst.students.heads import ProjectionHead
from ptmst.students.image_towers import image_tower
from ptmst.students.student import Student
from tiny import BATCHES, TEXT_WIDTH, outer_case

pytestmark = pytest.mark.slow  # open_clip and transformers take seconds to import

NAME = "ptmst-tiny"
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COCA = CLIP | {
    "multimodal_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "vision_cfg": {**CLIP["vision_cfg"], "attentional_pool": True, "output_tokens": True},  # type: ignore[dict-item]
    "custom_text": True,
}


@pytest.fixture(autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("models")
    for name, config in ((NAME, CLIP), ("ptmst-coca", COCA)):
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")


def tower(**settings: str | Path) -> tuple[nn.Module, int]:
    return image_tower(EncoderConfig(image_tower=f"open_clip:{NAME}", **settings), 32)  # type: ignore[arg-type]


def test_gradients_through_attention() -> None:
    torch.manual_seed(0)
    module, width = tower()
    assert width == 16
    student = Student.from_modules(module.double(), ProjectionHead(TEXT_WIDTH, width).double())
    case = outer_case(student, 32, "full", BATCHES[:2])
    for adjoint, clip in ((0.0, None), (0.5, 0.9)):
        for keep in ("path", "primals"):
            found = case.gradient(adjoint, clip, keep=keep).grads
            for name, value in case.oracle.recursion(adjoint, clip).items():
                assert relative_error(found[name], value) <= 1e-9, (name, adjoint, keep)


def test_the_same_features_as_open_clips_own(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = open_clip.create_model(NAME).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(images)
    # A whole CLIP model's weights: what is not of the image tower is passed over.
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "clip.safetensors")
    module, _ = tower(image_weights=tmp_path / "clip.safetensors")
    with torch.no_grad():
        assert relative_error(module(images), expected) <= 1e-5
        assert relative_error(tower()[0](images), expected) > 0.1


def test_towers_start_alike() -> None:
    first, second = (tower()[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(InputError, match=r"image_tower open_clip:ViT-B-33: unknown model; did you mean .*ViT-B-32"):
        image_tower(EncoderConfig(image_tower="open_clip:ViT-B-33"), 32)
    with pytest.raises(InputError, match=r"expected features \[B, H\], found 2 outputs; choose another"):
        image_tower(EncoderConfig(image_tower="open_clip:ptmst-coca"), 32)
    with pytest.raises(InputError, match=r"does not take images of 48×48 .*; choose one that does, or teach"):
        image_tower(EncoderConfig(image_tower=f"open_clip:{NAME}"), 48)
