"""`python -m bench.towers --json FILE`: which image towers an outer step can be taken through, eager and compiled.

Every tower has random weights. Its derivatives, forward over reverse, are compared with double backward, and that, of
towers that are compiled too, with itself in float64. What FILE holds already is kept.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from bench import reading
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
"""Those that are proven eager and compiled."""
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
"""One of each family, tried as they are."""
BATCH, TEXT_WIDTH = 2, 6
KEEPS: tuple[Keep, ...] = ("path", "primals")


def measure(asked: tuple[str, bool]) -> dict[str, Any]:
    """How far a tower's derivatives, eager or compiled, are from double backward, and why where there are none."""
    import torch

    from ptmst.config import DataConfig, EncoderConfig
    from ptmst.engine.derivatives import Batch, underivable
    from ptmst.errors import InputError
    from ptmst.students.heads import ProjectionHead
    from ptmst.students.image_towers import image_tower, prepared
    from ptmst.students.student import Student

    tower, compiled = asked
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
        reason = underivable(student, keep, True, images, texts)
        if reason is not None:
            row[f"{keep}, refused"] = reason
    possible = [keep for keep in KEEPS if f"{keep}, refused" not in row]
    if not possible:
        return row
    draw = torch.Generator().manual_seed(1)
    theta = student.flatten()
    # Some towers have weights that start at zero, behind which no gradient is seen.
    theta = theta + 1e-3 * torch.randn(len(theta), generator=draw)
    batch = Batch(images, texts, torch.eye(BATCH) * 0.8 + 0.1)
    direction = torch.randn(len(theta), generator=draw)
    # Reverse over reverse, by autograd alone.
    expected = _double_backward(student, theta, batch, direction)
    # Compilation takes minutes: one way of the two stands for both.
    row |= _errors(student, theta, batch, direction, expected, possible[:1] if compiled else possible, compiled)
    if tower in TOWERS and not compiled:
        precise = Student.from_modules(module.double(), head.double())
        exact = _double_backward(precise, theta.double(), Batch(*(v.double() for v in batch)), direction.double())
        row["rounding"] = _distance(expected, exact)
    return row


def _distance(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The greatest over the variables, each relative to its norm."""
    return max(
        float((value - found[name]).norm() / value.norm())
        for name, value in expected.items()
        if float(value.norm()) > 0
    )


def _errors(
    student: Any, theta: Any, batch: Any, direction: Any, expected: dict[str, Any], keeps: list[Keep], compiled: bool
) -> dict[str, Any]:
    """Distance from what is expected, way by way."""
    import torch

    from ptmst.engine.compilation import compiler
    from ptmst.engine.derivatives import derivatives

    found: dict[str, Any] = {}
    lr = torch.tensor([0.1, 0.05])
    for keep in keeps:
        compile = compiler("on", theta.device) if compiled else None
        way = derivatives(student, "wbce", 0.07, in_theta=True, keep=keep, chunk=None, compiler=compile)
        began = time.perf_counter()
        try:
            with torch.no_grad():
                along = way.step(theta, lr, lambda: batch).along(direction)
        except Exception as failed:
            if not compiled:
                raise
            found[f"{keep}, refused"] = f"{type(failed).__name__}: {str(failed).splitlines()[0]}"
            continue
        found[keep] = _distance({name: getattr(along, name) for name in expected}, expected)
        if compiled:
            found["seconds"] = time.perf_counter() - began
            torch.compiler.reset()
    return found


def _double_backward(student: Any, theta: Any, batch: Any, direction: Any) -> dict[str, Any]:
    import torch

    from ptmst.students.losses import student_loss

    leaves = [value.clone().requires_grad_() for value in (theta, *batch)]
    loss = student_loss(student, "wbce", 0.07)(*leaves)
    (g,) = torch.autograd.grad(loss, leaves[0], create_graph=True)
    found = torch.autograd.grad(g @ direction, leaves)
    return dict(zip(("theta", "images", "texts", "similarity"), found, strict=True))


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m bench.towers", description=__doc__)
    options.add_argument("--json", type=Path, required=True, metavar="FILE", help="results")
    asked = options.parse_args()
    import torch

    from bench.measure import environment
    from ptmst.support import files, parallel, progress

    every = [*((tower, False) for tower in (*TOWERS, *FAMILIES)), *((tower, True) for tower in TOWERS)]
    rows = reading.rows(asked.json)
    left = [one for one in every if one not in {(row["tower"], row["compiled"]) for row in rows}]
    with progress.bar("towers", len(every), len(rows)) as bar:
        for tower, compiled in left:
            # In a process of its own: what torch and its compiler keep of all towers would fill any memory.
            rows += parallel.completed(measure, [(tower, compiled)], workers=1)
            rows.sort(key=lambda row: every.index((row["tower"], row["compiled"])))
            files.write_json(asked.json, {"environment": environment(torch.device("cpu")), "rows": rows})
            bar.advance(f"{tower}{', compiled' if compiled else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
