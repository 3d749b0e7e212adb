"""Tiles of the soft-label contrastive losses; see ptmst.kernels.contrast for what each kernel gives and is given."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.triton_kernels.matching import add_up_kernel

_ROWS, _COLUMNS = 8, 128
"""Of logits that one program owns."""
_LINE = 1024
"""Logits of a row that are summed at once."""
_STRIP, _STEP = 64, 64
"""Columns and rows of logits whose column sums one program makes."""
_SUMMED = 1024


@triton.jit
def labels_of(p_labels, o_row, o_column, m, first, label_stride, IDENTITY: tl.constexpr):
    """S at rows o_row and columns o_column of a tile."""
    if IDENTITY:
        b_labels = tl.where(o_column == first + o_row, 1.0, 0.0)
    else:
        b_labels = tl.load(p_labels + o_row.to(tl.int64) * label_stride + o_column, mask=m, other=0.0)
    return b_labels


@triton.jit
def log_1p(b_u):
    """log(1 + u) for 0 ≤ u ≤ 1: the rounding of 1 + u is put back."""
    b_w = 1.0 + b_u
    return tl.log(b_w) + (b_u - (b_w - 1.0)) / b_w


@triton.jit(do_not_specialize=["first", "num_rows"])
def pairwise_kernel(
    p_z,  # [rows, columns] logits in, ∂ℓ/∂z out
    p_d_labels,  # [rows, columns] out
    p_partial,  # [programs, 4] out
    p_labels,  # [rows, columns]
    p_weights,  # [2]
    first,
    label_stride,
    num_rows,
    num_columns,
    KIND: tl.constexpr,
    IDENTITY: tl.constexpr,
    DIFFERENTIATE: tl.constexpr,
    OF_LABELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns ROWS × COLUMNS pairs.

    wbce  −S log(σ + ε) − (1−S) log(1 − σ + ε)       bce, siglip  −S log σ − (1−S) log(1 − σ)       mse  (σ − S)²
    """
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    o_row = (i_row * ROWS + tl.arange(0, ROWS))[:, None]
    o_column = (i_column * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    m = (o_row < num_rows) & (o_column < num_columns)
    o = o_row.to(tl.int64) * num_columns + o_column
    b_z = tl.load(p_z + o, mask=m, other=0.0)
    b_s = labels_of(p_labels, o_row, o_column, m, first, label_stride, IDENTITY)
    b_e = tl.exp(-tl.abs(b_z))
    b_near = 1.0 / (1.0 + b_e)
    b_far = b_e * b_near
    b_yes, b_no = tl.where(b_z < 0.0, b_far, b_near), tl.where(b_z < 0.0, b_near, b_far)
    if KIND == "mse":
        b_off = b_yes - b_s
        b_loss = b_off * b_off
        b_slope = 2.0 * b_off * b_yes * b_no
        b_of_label = -2.0 * b_off
    else:
        if KIND == "wbce":
            b_log_yes, b_log_no = tl.log(b_yes + 1e-6), tl.log(b_no + 1e-6)
            b_slope = b_yes * b_no * ((1.0 - b_s) / (b_no + 1e-6) - b_s / (b_yes + 1e-6))
        else:
            b_tail = log_1p(b_e)
            b_log_yes, b_log_no = tl.minimum(b_z, 0.0) - b_tail, tl.minimum(-b_z, 0.0) - b_tail
            if KIND == "bce":
                # torch's binary cross-entropy cuts logarithms off at −100.
                b_slope = tl.where(b_log_no > -100.0, (1.0 - b_s) * b_yes, 0.0)
                b_slope -= tl.where(b_log_yes > -100.0, b_s * b_no, 0.0)
                b_log_yes, b_log_no = tl.maximum(b_log_yes, -100.0), tl.maximum(b_log_no, -100.0)
            else:
                b_slope = b_yes - b_s
        b_loss = -b_s * b_log_yes - (1.0 - b_s) * b_log_no
        b_of_label = b_log_no - b_log_yes
    m_positive = m & (b_s > 0.5)
    p_sums = p_partial + (i_row * tl.num_programs(0) + i_column).to(tl.int64) * 4
    tl.store(p_sums, tl.sum(tl.sum(tl.where(m_positive, b_loss, 0.0), axis=1), axis=0))
    tl.store(p_sums + 1, tl.sum(tl.sum(tl.where(m & (b_s <= 0.5), b_loss, 0.0), axis=1), axis=0))
    if DIFFERENTIATE:
        b_weight = tl.where(b_s > 0.5, tl.load(p_weights), tl.load(p_weights + 1))
        b_slope = tl.where(m, b_weight * b_slope, 0.0)
        tl.store(p_z + o, b_slope, mask=m)
        tl.store(p_sums + 2, tl.sum(tl.sum(b_slope * b_z, axis=1), axis=0))
        tl.store(p_sums + 3, tl.sum(tl.sum(b_slope, axis=1), axis=0))
        if OF_LABELS:
            tl.store(p_d_labels + o, b_weight * b_of_label, mask=m)
    else:
        tl.store(p_sums + 2, 0.0)
        tl.store(p_sums + 3, 0.0)


@triton.jit(do_not_specialize=["first"])
def row_numbers_kernel(
    p_numbers,  # [rows, 5] float64 out
    p_z,  # [rows, columns]
    p_labels,  # [rows, columns]
    first,
    label_stride,
    num_columns,
    SHARPENED: tl.constexpr,
    IDENTITY: tl.constexpr,
    LINE: tl.constexpr,
):
    """A program owns a row."""
    i_row = tl.program_id(0)
    o = tl.arange(0, LINE)
    p_row = p_z + i_row.to(tl.int64) * num_columns
    b_peak = tl.full([LINE], -3.4e38, tl.float32)
    b_sharp_peak = tl.full([LINE], -3.4e38, tl.float32)
    for i in range(0, num_columns, LINE):
        o_column = i + o
        m = o_column < num_columns
        b_peak = tl.maximum(b_peak, tl.load(p_row + o_column, mask=m, other=-3.4e38))
        if SHARPENED:
            b_s = labels_of(p_labels, i_row, o_column, m, first, label_stride, IDENTITY)
            b_sharp_peak = tl.maximum(b_sharp_peak, tl.where(m, 10.0 * b_s, -3.4e38))
    peak, sharp_peak = tl.max(b_peak, axis=0), tl.max(b_sharp_peak, axis=0)
    b_first = tl.zeros([LINE], tl.float64)
    b_second = tl.zeros([LINE], tl.float64)
    b_third = tl.zeros([LINE], tl.float64)
    for i in range(0, num_columns, LINE):
        o_column = i + o
        m = o_column < num_columns
        b_below = tl.load(p_row + o_column, mask=m, other=0.0) - peak
        b_s = labels_of(p_labels, i_row, o_column, m, first, label_stride, IDENTITY)
        b_first += tl.where(m, tl.exp(b_below), 0.0)
        if SHARPENED:
            b_sharp_below = 10.0 * b_s - sharp_peak
            b_sharp = tl.where(m, tl.exp(b_sharp_below), 0.0)
            b_second += b_sharp
            b_third += b_sharp * (b_sharp_below - b_below)
        else:
            b_second += tl.where(m, b_s, 0.0)
            b_third += tl.where(m, b_s * b_below, 0.0)
    p_out = p_numbers + i_row.to(tl.int64) * 5
    tl.store(p_out, peak.to(tl.float64))
    tl.store(p_out + 1, sharp_peak.to(tl.float64))
    tl.store(p_out + 2, tl.sum(b_first, axis=0))
    tl.store(p_out + 3, tl.sum(b_second, axis=0))
    tl.store(p_out + 4, tl.sum(b_third, axis=0))


@triton.jit(do_not_specialize=["first", "num_rows"])
def column_numbers_kernel(
    p_partial,  # [row blocks, 5, columns] out
    p_z,  # [rows, columns]
    p_labels,  # [rows, columns]
    first,
    label_stride,
    num_rows,
    num_columns,
    SHARPENED: tl.constexpr,
    IDENTITY: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
):
    """A program owns STRIP columns of ROWS rows."""
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    o_row = (i_row * ROWS + tl.arange(0, ROWS))[:, None]
    o_column = i_column * STRIP + tl.arange(0, STRIP)
    m_column = o_column < num_columns
    m = (o_row < num_rows) & m_column[None, :]
    b_z = tl.load(p_z + o_row.to(tl.int64) * num_columns + o_column[None, :], mask=m, other=-3.4e38)
    b_s = labels_of(p_labels, o_row, o_column[None, :], m, first, label_stride, IDENTITY)
    b_peak = tl.max(b_z, axis=0)
    b_below = tl.where(m, b_z - b_peak[None, :], 0.0)
    b_first = tl.sum(tl.where(m, tl.exp(b_below), 0.0), axis=0)
    if SHARPENED:
        b_sharp_peak = tl.max(tl.where(m, 10.0 * b_s, -3.4e38), axis=0)
        b_sharp_below = 10.0 * b_s - b_sharp_peak[None, :]
        b_sharp = tl.where(m, tl.exp(b_sharp_below), 0.0)
        b_second = tl.sum(b_sharp, axis=0)
        b_third = tl.sum(b_sharp * (b_sharp_below - b_below), axis=0)
    else:
        b_sharp_peak = tl.full([STRIP], -3.4e38, tl.float32)
        b_second = tl.sum(tl.where(m, b_s, 0.0), axis=0)
        b_third = tl.sum(tl.where(m, b_s * b_below, 0.0), axis=0)
    p_own = p_partial + i_row.to(tl.int64) * 5 * num_columns + o_column
    tl.store(p_own, b_peak, mask=m_column)
    tl.store(p_own + num_columns, b_sharp_peak, mask=m_column)
    tl.store(p_own + 2 * num_columns, b_first, mask=m_column)
    tl.store(p_own + 3 * num_columns, b_second, mask=m_column)
    tl.store(p_own + 4 * num_columns, b_third, mask=m_column)


@triton.jit(do_not_specialize=["num_blocks"])
def merge_columns_kernel(
    p_state,  # [5, columns] float64 in and out
    p_partial,  # [row blocks, 5, columns]
    num_blocks,
    num_columns,
    SHARPENED: tl.constexpr,
    STRIP: tl.constexpr,
):
    """A program owns STRIP columns, and merges their row blocks in order: sums against lower peaks shrink."""
    o_column = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    m = o_column < num_columns
    p_own = p_state + o_column
    b_peak = tl.load(p_own, mask=m, other=0.0)
    b_sharp_peak = tl.load(p_own + num_columns, mask=m, other=0.0)
    b_first = tl.load(p_own + 2 * num_columns, mask=m, other=0.0)
    b_second = tl.load(p_own + 3 * num_columns, mask=m, other=0.0)
    b_third = tl.load(p_own + 4 * num_columns, mask=m, other=0.0)
    p_new = p_partial + o_column
    for _ in range(num_blocks):
        b_new = tl.load(p_new, mask=m, other=0.0).to(tl.float64)
        b_new_sharp = tl.load(p_new + num_columns, mask=m, other=0.0).to(tl.float64)
        b_top, b_sharp_top = tl.maximum(b_peak, b_new), tl.maximum(b_sharp_peak, b_new_sharp)
        # How far each side's peak lies below the common one.
        b_fall, b_new_fall = b_peak - b_top, b_new - b_top
        b_new_first = tl.load(p_new + 2 * num_columns, mask=m, other=0.0).to(tl.float64)
        b_new_second = tl.load(p_new + 3 * num_columns, mask=m, other=0.0).to(tl.float64)
        b_new_third = tl.load(p_new + 4 * num_columns, mask=m, other=0.0).to(tl.float64)
        b_first = b_first * tl.exp(b_fall) + b_new_first * tl.exp(b_new_fall)
        if SHARPENED:
            b_sharp_fall, b_new_sharp_fall = b_sharp_peak - b_sharp_top, b_new_sharp - b_sharp_top
            b_shrunk, b_new_shrunk = tl.exp(b_sharp_fall), tl.exp(b_new_sharp_fall)
            b_third = (b_third + b_second * (b_sharp_fall - b_fall)) * b_shrunk
            b_third += (b_new_third + b_new_second * (b_new_sharp_fall - b_new_fall)) * b_new_shrunk
            b_second = b_second * b_shrunk + b_new_second * b_new_shrunk
        else:
            b_third += b_second * b_fall + b_new_third + b_new_second * b_new_fall
            b_second += b_new_second
        b_peak, b_sharp_peak = b_top, b_sharp_top
        p_new += 5 * num_columns
    tl.store(p_own, b_peak, mask=m)
    tl.store(p_own + num_columns, b_sharp_peak, mask=m)
    tl.store(p_own + 2 * num_columns, b_first, mask=m)
    tl.store(p_own + 3 * num_columns, b_second, mask=m)
    tl.store(p_own + 4 * num_columns, b_third, mask=m)


@triton.jit(do_not_specialize=["first", "num_rows"])
def softmax_kernel(
    p_z,  # [rows, columns] logits in, ∂ℓ/∂z out
    p_d_labels,  # [rows, columns] out
    p_partial,  # [programs, 2] out
    p_labels,  # [rows, columns]
    p_rows,  # [rows, 5]
    p_columns,  # [5, columns]
    first,
    label_stride,
    num_rows,
    num_columns,
    SHARPENED: tl.constexpr,
    IDENTITY: tl.constexpr,
    OF_LABELS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns ROWS × COLUMNS pairs. linear: ∂ℓ/∂z = (a p − u S)/2; kl: a (p − q)/2; rows and columns add up."""
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    o_row = (i_row * ROWS + tl.arange(0, ROWS))[:, None]
    o_column = (i_column * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    m_row, m_column = o_row < num_rows, o_column < num_columns
    m = m_row & m_column
    o = o_row.to(tl.int64) * num_columns + o_column
    b_z = tl.load(p_z + o, mask=m, other=0.0)
    b_s = labels_of(p_labels, o_row, o_column, m, first, label_stride, IDENTITY)
    p_row, p_column = p_rows + o_row * 5, p_columns + o_column
    b_p = tl.load(p_row + 1, mask=m_row, other=0.0) * tl.exp(b_z - tl.load(p_row, mask=m_row, other=0.0))
    b_p += tl.load(p_column + num_columns, mask=m_column, other=0.0) * tl.exp(
        b_z - tl.load(p_column, mask=m_column, other=0.0)
    )
    b_r2, b_r3 = tl.load(p_row + 2, mask=m_row, other=0.0), tl.load(p_row + 3, mask=m_row, other=0.0)
    b_c2 = tl.load(p_column + 2 * num_columns, mask=m_column, other=0.0)
    b_c3 = tl.load(p_column + 3 * num_columns, mask=m_column, other=0.0)
    if SHARPENED:
        b_x = 10.0 * b_s
        b_q, b_t = b_r3 * tl.exp(b_x - b_r2), b_c3 * tl.exp(b_x - b_c2)
        b_slope = 0.5 * (b_p - (b_q + b_t))
        if OF_LABELS:
            b_off = b_x - b_z
            b_r4 = tl.load(p_row + 4, mask=m_row, other=0.0)
            b_c4 = tl.load(p_column + 4 * num_columns, mask=m_column, other=0.0)
            tl.store(p_d_labels + o, 5.0 * (b_q * (b_off - b_r4) + b_t * (b_off - b_c4)), mask=m)
    else:
        b_slope = 0.5 * (b_p - b_s * (b_r2 + b_c2))
        if OF_LABELS:
            tl.store(p_d_labels + o, -0.5 * (b_r2 * (b_z - b_r3) + b_c2 * (b_z - b_c3)), mask=m)
    b_slope = tl.where(m, b_slope, 0.0)
    tl.store(p_z + o, b_slope, mask=m)
    p_sums = p_partial + (i_row * tl.num_programs(0) + i_column).to(tl.int64) * 2
    tl.store(p_sums, tl.sum(tl.sum(b_slope * b_z, axis=1), axis=0))
    tl.store(p_sums + 1, tl.sum(tl.sum(b_slope, axis=1), axis=0))


def pairwise(
    kind: str,
    z: Tensor,
    labels: Tensor | None,
    d_labels: Tensor | None,
    first: int,
    weights: Tensor,
    differentiate: bool,
    sums: Tensor,
) -> None:
    grid, partial = _grid(z, 4)
    pairwise_kernel[grid](
        p_z=z,
        p_d_labels=z if d_labels is None else d_labels,
        p_partial=partial,
        p_labels=z if labels is None else labels,
        p_weights=weights,
        DIFFERENTIATE=differentiate,
        KIND=kind,
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **_common(z, labels, first),
    )
    _add_up(partial, sums)


def lines(kind: str, z: Tensor, labels: Tensor | None, first: int, rows: Tensor, columns: Tensor) -> None:
    common = _common(z, labels, first)
    tensors: dict[str, Any] = {"p_z": z, "p_labels": z if labels is None else labels, "SHARPENED": kind == "kl"}
    grid = triton.cdiv(z.shape[1], _STRIP), triton.cdiv(z.shape[0], _STEP)
    partial = z.new_empty(grid[1], 5, z.shape[1])
    column_numbers_kernel[grid](p_partial=partial, ROWS=_STEP, STRIP=_STRIP, **tensors, **common)
    merge_columns_kernel[(grid[0],)](
        p_state=columns,
        p_partial=partial,
        num_blocks=grid[1],
        num_columns=z.shape[1],
        SHARPENED=kind == "kl",
        STRIP=_STRIP,
        num_warps=2,
    )
    del common["num_rows"]
    row_numbers_kernel[(len(z),)](p_numbers=rows, LINE=_LINE, **tensors, **common)


def softmax(
    kind: str,
    z: Tensor,
    labels: Tensor | None,
    d_labels: Tensor | None,
    first: int,
    rows: Tensor,
    columns: Tensor,
    sums: Tensor,
) -> None:
    grid, partial = _grid(z, 2)
    softmax_kernel[grid](
        p_z=z,
        p_d_labels=z if d_labels is None else d_labels,
        p_partial=partial,
        p_labels=z if labels is None else labels,
        p_rows=rows,
        p_columns=columns,
        SHARPENED=kind == "kl",
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **_common(z, labels, first),
    )
    _add_up(partial, sums)


def _common(z: Tensor, labels: Tensor | None, first: int) -> dict[str, Any]:
    return {
        "first": first,
        "label_stride": 0 if labels is None else labels.stride(0),
        "num_rows": z.shape[0],
        "num_columns": z.shape[1],
        "IDENTITY": labels is None,
        "num_warps": 4,
    }


def _grid(z: Tensor, quantities: int) -> tuple[tuple[int, int], Tensor]:
    grid = triton.cdiv(z.shape[1], _COLUMNS), triton.cdiv(z.shape[0], _ROWS)
    return grid, z.new_empty(grid[0] * grid[1], quantities)


def _add_up(partial: Tensor, sums: Tensor) -> None:
    added = torch.empty_like(sums)
    add_up_kernel[(partial.shape[1],)](
        p_sums=added,
        p_partial=partial,
        num_rows=len(partial),
        num_columns=partial.shape[1],
        SUMMED=_SUMMED,
        num_warps=4,
    )
    sums += added
