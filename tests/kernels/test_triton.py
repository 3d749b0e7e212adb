"""Triton's kernels one by one: tiles and their tables, sums of tiles, and the small steps of the contrastive loss."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from lanes import running
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from oracles import relative_error
from ptmst.kernels import contrast as op
from ptmst.kernels import dispatch, steps
from ptmst.kernels.layout import CUTS_KEPT, cut

if dispatch.lacks_triton():
    pytest.skip("Triton cannot run here", allow_module_level=True)

import triton
import triton.language as tl

from ptmst.kernels import triton_kernels
from ptmst.kernels.triton_kernels import contrast, matching, shortcut, tiles, update


@pytest.fixture
def device() -> Iterator[torch.device]:
    with running("triton") as found:
        yield found


@triton.jit  # type: ignore[untyped-decorator]
def offsets_kernel(p_out, i_tile, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(p_out + tl.arange(0, BLOCK), tiles.tile_begin(tl.program_id(0) + i_tile, BLOCK) + tl.arange(0, BLOCK))


@pytest.mark.parametrize("i_tile", [3, 2**31 // tiles.BLOCK - 1, 2**31 // tiles.BLOCK + 7, 2**30])
def test_offsets_of_a_tile_are_of_64_bits(device: torch.device, i_tile: int) -> None:
    out = torch.zeros(tiles.BLOCK, dtype=torch.int64, device=device)
    offsets_kernel[(1,)](out, i_tile, BLOCK=tiles.BLOCK)
    assert torch.equal(out.cpu(), i_tile * tiles.BLOCK + torch.arange(tiles.BLOCK))


def test_tables_name_the_layers_of_each_tile() -> None:
    block = tiles.BLOCK
    sizes = [block - 1, 0, 1, 0, block, 3 * block + 5, 7]
    ends = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()])
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    layout = cut(int(ends[-1]), ends, groups)
    found = tiles.tables(layout, torch.device("cpu"))
    layer_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    starts = torch.arange(0, int(ends[-1]), block)
    assert found.first_layer.tolist() == [*layer_of[starts].tolist(), len(sizes) - 1]
    assert found.first_group.tolist() == [*groups[layer_of[starts]].tolist(), 2]
    assert found.group_offsets.tolist() == [0, block, 5 * block + 5, 5 * block + 12]


def tables_of(parameters: int, device: torch.device) -> tuple[tiles.Tables, weakref.ref[Tensor]]:
    found = tiles.tables(cut(parameters, torch.tensor([0, parameters])), device)
    return found, weakref.ref(found.first_layer)


def test_vectors_are_copied_to_where_registers_like_them(device: torch.device) -> None:
    room = torch.randn(9, device=device)
    assert tiles.aligned(room) is room and tiles.aligned(room[4:]).data_ptr() == room[4:].data_ptr()
    moved = tiles.aligned(room[1:])
    assert moved.data_ptr() % 16 == 0 and torch.equal(moved, room[1:])


@pytest.mark.slow
def test_tables_go_with_their_cut_but_for_those_of_a_recording(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many vectors there are, memory stays; but what a CUDA graph was told the address of is not freed."""
    monkeypatch.setattr(tiles, "_recorded", {})
    table, forgotten = tables_of(1_000_001, device)
    assert tables_of(1_000_001, device)[0] is table
    with monkeypatch.context() as recording:
        recording.setattr(tiles, "_recording", lambda _: True)
        kept = tables_of(1_000_002, device)[1]
    del table
    for number in range(CUTS_KEPT):
        tables_of(number, device)
    gc.collect()
    assert forgotten() is None and kept() is not None


def test_sums_of_many_tiles(device: torch.device) -> None:
    """More than are added at once, in groups that begin within a tile, and one without parameters."""
    block, many = tiles.BLOCK, matching._SUMMED
    ends = (0, 3 * block + 1, 3 * block + 1, (many + 7) * block, (3 * many + 9) * block + 5)
    layout = cut(ends[-1], torch.tensor(ends), torch.arange(4))
    places = torch.randn(3, tiles.num_tiles(ends[-1]) + 4, device=device)
    table = tiles.Tables(*(v.to(device) for v in (layout.offsets, layout.groups, layout.group_offsets, layout.groups)))
    for found, own in zip(matching._added(layout, table, places), places.double().cpu(), strict=True):
        expected = [
            own[g + a // block : g + -(-b // block)].sum() if a < b else 0 for g, (a, b) in enumerate(pairwise(ends))
        ]
        assert relative_error(found.cpu(), torch.tensor(expected)) <= 1e-6


# Launches: each costs a device microseconds, however little it does.


class Launched(TorchDispatchMode):
    """Counts torch's ops that a device would have to run, and launches of Triton's kernels, which do not run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0
        for module in (contrast, matching, shortcut, update):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, self)

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        self.number += 1
        return lambda **arguments: None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [out.alias_info for out in func._schema.returns]
        views = any(alias is not None and not alias.is_write for alias in aliases)
        self.number += not views and "empty" not in func.overloadpacket.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "labels", "launches"),
    [("wbce", 0, 7), ("siglip", 0, 7), ("wbce", 1, 9), ("infonce", 0, 11), ("kl", 0, 11), ("cwcl", 1, 11)],
)
def test_launches_of_the_contrastive_loss(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: str, labels: int, launches: int
) -> None:
    """Value and gradients. Of them three are products; wbce counts labels."""
    images, texts = torch.randn(2, 40, 24, device=device)
    soft = [torch.rand(40, 40, device=device)] * labels
    temperature, bias = torch.tensor([0.07, 0.0], dtype=torch.float64, device=device)
    with Launched(monkeypatch) as launched:
        op._run_gradients(images, texts, temperature, bias, soft, 0.0, kind, bool(labels))
    assert launched.number == launches


def test_launches_of_flat_kernels(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One over all tiles, whole or not, and one for the sums of groups."""
    # Each where registers like it: others are copied first.
    theta, base, grad, ema = (torch.randn(3 * tiles.BLOCK + 5, device=device) for _ in range(4))
    half, numbers = base.half(), torch.rand(3, 2, device=device)
    table = torch.tensor([0, tiles.BLOCK - 1, len(theta)]), torch.tensor([0, 1])
    calls: list[Callable[[], object]] = [
        lambda: triton_kernels.shortcut_point(base, half, numbers[0], table[0], numbers[1]),
        lambda: triton_kernels.matching_residual(theta, base, half, numbers[0], *table, numbers[1], numbers[2]),
        lambda: triton_kernels.vector_residual(theta, base, grad, *table),
        lambda: triton_kernels.flat_sgd_(theta, grad, numbers[0], *table),
        lambda: triton_kernels.sgd_ema_(theta, grad, base, ema, 0.1, 0.5, 0.9),
    ]
    found = []
    for call in calls:
        call()  # makes the tables
        with monkeypatch.context() as patch, Launched(patch) as launched:
            call()
        found.append(launched.number)
    assert found == [1, 2, 2, 1, 1]


# The small steps of the contrastive loss, against plain torch in float64; wider and longer than a loop's one turn.


def test_unit_pairs_and_the_way_back(device: torch.device) -> None:
    images, texts, *slopes = torch.randn(4, 3, 1500, dtype=torch.float64)
    temperature = torch.tensor(0.07, dtype=torch.float64)
    images[1] = 0
    expected = steps.unit_pairs(images, texts, temperature, torch.float64)
    exact = steps.through_norms((slopes[0].clone(), slopes[1].clone()), *expected, temperature, torch.float64)
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        raw, hot = [v.to(device, dtype) for v in (images, texts)], temperature.float().to(device)
        units, scales = triton_kernels.unit_pairs(raw[0], raw[1], hot, dtype)
        assert units.dtype == dtype and relative_error(units.cpu(), expected[0]) <= allowed
        assert relative_error(scales.cpu(), expected[1].double()) <= allowed
        given = slopes[0].float().to(device), slopes[1].float().to(device)
        for mine, other in zip(triton_kernels.through_norms(given, units, scales, hot, dtype), exact, strict=True):
            assert mine.dtype == dtype
            for row, right in zip(mine.cpu(), other, strict=True):  # a row of zeros has a slope of 10¹³
                assert relative_error(row, right) <= allowed


@pytest.mark.parametrize("kind", ["infonce", "cwcl", "kl"])
def test_coefficients_of_rows_and_columns(device: torch.device, kind: str) -> None:
    rows = torch.rand(300, 5, dtype=torch.float64) + 0.5
    columns = torch.rand(5, 300, dtype=torch.float64) + 0.5
    found = triton_kernels.softmax_coefficients(kind, rows.to(device), columns.to(device))
    for mine, exact in zip(found, steps.softmax_coefficients(kind, rows, columns), strict=True):
        assert mine.dtype == exact.dtype and relative_error(mine.cpu(), exact.double()) <= 1e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [torch.float32, torch.float64])
def test_totals(device: torch.device, dtype: torch.dtype, number: torch.dtype) -> None:
    losses, along, slopes = torch.randn(3, 10_001) + 1
    temperature, bias = torch.tensor([0.07, -3.0], dtype=number)
    for of_z, of_bias in ((None, None), (along, None), (along, slopes)):
        exact = steps.totals(losses, of_z, of_bias, temperature, bias, dtype)
        sums = [None if v is None else v.to(device) for v in (of_z, of_bias)]
        numbers = temperature.to(device), bias.to(device)
        found = triton_kernels.totals(losses.double().to(device), sums[0], sums[1], *numbers, dtype)
        assert [v.dtype for v in found] == [v.dtype for v in exact] and len(found) == len(exact)
        for mine, expected in zip(found, exact, strict=True):
            allowed = 1e-2 if mine.dtype == torch.bfloat16 else 1e-6
            assert abs(float(mine) - float(expected)) <= allowed * abs(float(expected))
