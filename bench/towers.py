"""`python -m bench.towers --json FILE`: which image towers an outer step can be taken through, eager and compiled.

Every tower has random weights. Its derivatives, forward over reverse, are compared with double backward, and that, of
towers that are compiled too, with itself in float64. A stopped run continues.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from bench.command import bare_parser, collect
from ptmst.config import Keep

TOWERS = (
    "convnet",
    "timm:nfnet_l0",
    "timm:nf_resnet50",
    "timm:nf_regnet_b1",
    "timm:resnet50",
    "timm:convnext_tiny",
    "timm:vit_tiny_patch16_224",
    "timm:vit_base_patch16_224.dino",
    "timm:vit_base_patch16_siglip_224",
    "open_clip:ViT-B-32",
    "open_clip:ViT-B-16-SigLIP",
    "open_clip:RN50",
)
"""Checked eager and compiled."""
FAMILIES = (
    "timm:resnet50_gn",
    "timm:resnetv2_50",
    "timm:resnext50_32x4d",
    "timm:regnety_016",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv4_conv_small",
    "timm:efficientnet_b0",
    "timm:efficientnetv2_rw_t",
    "timm:densenet121",
    "timm:convnextv2_atto",
    "timm:vgg16",
    "timm:inception_v3",
    "timm:dpn68",
    "timm:hrnet_w18_small",
    "timm:ghostnet_100",
    "timm:deit_tiny_patch16_224",
    "timm:deit3_small_patch16_224",
    "timm:cait_xxs24_224",
    "timm:beit_base_patch16_224",
    "timm:eva02_tiny_patch14_224",
    "timm:swin_tiny_patch4_window7_224",
    "timm:swinv2_cr_tiny_ns_224",
    "timm:maxvit_tiny_rw_224",
    "timm:coatnet_0_rw_224",
    "timm:levit_128s",
    "timm:mobilevit_xs",
    "timm:pvt_v2_b0",
    "timm:poolformer_s12",
    "timm:mixer_s16_224",
    "timm:gmlp_s16_224",
    "timm:xcit_nano_12_p16_224",
    "timm:fastvit_t8",
    "timm:hiera_tiny_224",
    "timm:nextvit_small",
    "timm:vit_small_patch14_dinov2",
    "timm:naflexvit_base_patch16_gap",
    "open_clip:convnext_base",
    "open_clip:coca_ViT-B-32",
    "open_clip:MobileCLIP-S1",
    "open_clip:EVA02-B-16",
    "open_clip:ViT-B-16-plus-240",
)
"""One of each family, checked eager."""
BATCH, TEXT_WIDTH = 2, 6
KEEPS: tuple[Keep, ...] = ("path", "primals")


def measure(case: tuple[str, bool]) -> dict[str, Any]:
    """How far a tower's derivatives, eager or compiled, are from double backward, and why where there are none."""
    import torch

    from ptmst.config import DataConfig, EncoderConfig
    from ptmst.engine.derivatives import Batch, why_not_differentiable
    from ptmst.errors import InputError
    from ptmst.students.heads import ProjectionHead
    from ptmst.students.image_towers import image_tower, prepared
    from ptmst.students.student import Student

    tower, compiled = case
    encoder = EncoderConfig(image_tower=tower)
    row: dict[str, Any] = {"tower": tower, "compiled": compiled}
    try:
        data = prepared(DataConfig(), encoder)
        assert data.image_size is not None
        module, width = image_tower(encoder, data.image_size)
        head = ProjectionHead(TEXT_WIDTH, width)
        student = Student.from_modules(module, head)
    except InputError as error:
        return row | {"refused": str(error)}
    size = data.image_size
    row |= {"parameters": sum(p.numel() for p in module.parameters()), "width": width}
    row |= {"image size": size, "mean": data.mean, "std": data.std}
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(BATCH, 3, size, size, generator=draw), torch.randn(BATCH, TEXT_WIDTH, generator=draw)
    for keep in KEEPS:
        reason = why_not_differentiable(student, keep, True, images, texts)
        if reason is not None:
            row[f"{keep}, refused"] = reason
    possible = [keep for keep in KEEPS if f"{keep}, refused" not in row]
    if not possible:
        return row
    draw = torch.Generator().manual_seed(1)
    theta = student.flatten()
    # Some weights of towers start at zero and would block gradients.
    theta = theta + 1e-3 * torch.randn(len(theta), generator=draw)
    batch = Batch(images, texts, torch.eye(BATCH) * 0.8 + 0.1)
    direction = torch.randn(len(theta), generator=draw)
    # Reverse over reverse, by autograd alone.
    expected = _double_backward(student, theta, batch, direction)
    # Compilation takes minutes: one implementation stands for both.
    row |= _errors(student, theta, batch, direction, expected, possible[:1] if compiled else possible, compiled)
    if tower in TOWERS and not compiled:
        precise = Student.from_modules(module.double(), head.double())
        exact = _double_backward(precise, theta.double(), Batch(*(v.double() for v in batch)), direction.double())
        row["rounding"] = _distance(expected, exact)
    return row


def _distance(gradients: dict[str, Any], expected: dict[str, Any]) -> float:
    """The greatest over the variables, each relative to its norm."""
    return max(
        float((value - gradients[name]).norm() / value.norm())
        for name, value in expected.items()
        if float(value.norm()) > 0
    )


def _errors(
    student: Any, theta: Any, batch: Any, direction: Any, expected: dict[str, Any], keeps: list[Keep], compiled: bool
) -> dict[str, Any]:
    """Distance from what is expected, of each implementation."""
    import torch

    from ptmst.engine.compilation import compiler
    from ptmst.engine.derivatives import derivatives

    row: dict[str, Any] = {}
    lr = torch.tensor([0.1, 0.05])
    for keep in keeps:
        compile = compiler("on", theta.device) if compiled else None
        implementation = derivatives(student, "wbce", 0.07, in_theta=True, keep=keep, chunk=None, compiler=compile)
        began = time.perf_counter()
        try:
            with torch.no_grad():
                along = implementation.step(theta, lr, lambda: batch).along(direction)
        except Exception as failed:
            if not compiled:
                raise
            row[f"{keep}, refused"] = f"{type(failed).__name__}: {str(failed).splitlines()[0]}"
            continue
        row[keep] = _distance({name: getattr(along, name) for name in expected}, expected)
        if compiled:
            row["seconds"] = time.perf_counter() - began
            torch.compiler.reset()
    return row


def _double_backward(student: Any, theta: Any, batch: Any, direction: Any) -> dict[str, Any]:
    import torch

    from ptmst.students.losses import student_loss

    leaves = [value.clone().requires_grad_() for value in (theta, *batch)]
    loss = student_loss(student, "wbce", 0.07)(*leaves)
    (g,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    gradients = torch.autograd.grad(g @ direction, leaves)
    return dict(zip(("theta", "images", "texts", "similarity"), gradients, strict=True))


def main() -> int:
    asked = bare_parser("towers", __doc__).parse_args()
    from ptmst.support import parallel

    def in_a_process(case: tuple[str, bool]) -> list[dict[str, Any]]:
        # What torch and its compiler keep of all towers would fill any memory.
        return list(parallel.completed(measure, [case], workers=1))

    cases = [*((tower, False) for tower in (*TOWERS, *FAMILIES)), *((tower, True) for tower in TOWERS)]
    collect(asked.json, "towers", cases, lambda row: (row["tower"], row["compiled"]), in_a_process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
