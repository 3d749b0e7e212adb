"""Tiles of the soft-label contrastive losses; see ptmst.kernels.contrast for what each kernel gives and is given."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels.steps import EPS, SMALLEST_NORM
from ptmst.kernels.triton_kernels.tiles import OPTIONS

_ROWS, _COLUMNS = 8, 128
"""Of logits that one program owns."""
_LINE = 1024
"""Logits of a row, or numbers of an embedding, that are summed at once."""
_VECTORS = 4
"""Embeddings that one program owns."""
_STRIP, _STEP = 64, 64
"""Columns and rows of logits whose column sums one program makes."""
_LINES = 128
"""Rows, or columns, whose numbers one program makes."""
_SUMMED = 4096
"""Numbers that are summed at once."""
_EPS, _SMALLEST_NORM = tl.constexpr(EPS), tl.constexpr(SMALLEST_NORM)


@triton.jit(do_not_specialize=["num_rows"])
def unit_pairs_kernel(
    p_units,  # [2, rows, width] out
    p_scales,  # [2, rows] out
    p_images,  # [rows, width]
    p_texts,  # [rows, width]
    p_temperature,  # []
    num_rows,
    width,
    ROWS: tl.constexpr,
    LINE: tl.constexpr,
):
    """A program owns ROWS rows of the images or of the texts."""
    i_side, o, o_row = tl.program_id(1), tl.arange(0, LINE)[None, :], tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row, begin = (o_row < num_rows)[:, None], (o_row.to(tl.int64) * width)[:, None]
    p_vectors = p_images
    if i_side == 1:
        p_vectors, p_units, p_scales = p_texts, p_units + num_rows.to(tl.int64) * width, p_scales + num_rows
    b_squares = tl.zeros([ROWS, LINE], tl.float32)
    for i in range(0, width, LINE):
        b_vector = tl.load(p_vectors + begin + i + o, mask=m_row & (i + o < width), other=0.0).to(tl.float32)
        b_squares += b_vector * b_vector
    b_scale = tl.maximum(tl.sqrt(tl.sum(b_squares, axis=1)), _SMALLEST_NORM)
    if i_side == 0:
        b_scale *= tl.load(p_temperature).to(tl.float32)
    tl.store(p_scales + o_row, b_scale, mask=o_row < num_rows)
    for i in range(0, width, LINE):
        m = m_row & (i + o < width)
        b_vector = tl.load(p_vectors + begin + i + o, mask=m, other=0.0).to(tl.float32)
        tl.store(p_units + begin + i + o, b_vector / b_scale[:, None], mask=m)


@triton.jit(do_not_specialize=["num_rows"])
def through_norms_kernel(
    p_of_images,  # [rows, width] out
    p_of_texts,  # [rows, width] out
    p_image_slopes,  # [rows, width]; may be p_of_images
    p_text_slopes,  # [rows, width]; may be p_of_texts
    p_units,  # [2, rows, width]
    p_scales,  # [2, rows]
    p_temperature,  # []
    num_rows,
    width,
    ROWS: tl.constexpr,
    LINE: tl.constexpr,
):
    """A program owns ROWS rows: (g − u ⟨g, u⟩/|u|²) over the scale. |u| is 1 of texts and 1/temperature of images."""
    i_side, o, o_row = tl.program_id(1), tl.arange(0, LINE)[None, :], tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_row, begin = (o_row < num_rows)[:, None], (o_row.to(tl.int64) * width)[:, None]
    p_out, p_slopes, length = p_of_images, p_image_slopes, 1.0 / tl.load(p_temperature).to(tl.float32)
    if i_side == 1:
        p_out, p_slopes, length = p_of_texts, p_text_slopes, 1.0
        p_units, p_scales = p_units + num_rows.to(tl.int64) * width, p_scales + num_rows
    b_along = tl.zeros([ROWS, LINE], tl.float32)
    for i in range(0, width, LINE):
        m = m_row & (i + o < width)
        b_unit = tl.load(p_units + begin + i + o, mask=m, other=0.0).to(tl.float32)
        b_along += tl.load(p_slopes + begin + i + o, mask=m, other=0.0) * b_unit
    b_along = tl.sum(b_along, axis=1, keep_dims=True) / (length * length)
    b_scale = tl.load(p_scales + o_row, mask=o_row < num_rows, other=1.0)[:, None]
    for i in range(0, width, LINE):
        m = m_row & (i + o < width)
        b_unit = tl.load(p_units + begin + i + o, mask=m, other=0.0).to(tl.float32)
        b_slope = tl.load(p_slopes + begin + i + o, mask=m, other=0.0)
        tl.store(p_out + begin + i + o, (b_slope - b_unit * b_along) / b_scale, mask=m)


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


@triton.jit
def sum_of_all(b_value):
    return tl.sum(tl.sum(b_value, axis=1), axis=0)


@triton.jit
def pair_weights(p_positives, num_columns, KIND: tl.constexpr, IDENTITY: tl.constexpr):
    """Of N² pairs those with S > ½, and the rest."""
    n = tl.full([], num_columns, tl.float64)
    if KIND == "wbce":
        if IDENTITY:
            count = n
        else:
            count = tl.load(p_positives).to(tl.float64)
        of_positive, of_rest = 0.5 / (count + _EPS), 0.5 / (n * n - count + _EPS)
    else:
        if KIND == "siglip":
            of_positive = 1.0 / n
        else:
            of_positive = 1.0 / (n * n)
        of_rest = of_positive
    return of_positive.to(tl.float32), of_rest.to(tl.float32)


@triton.jit(do_not_specialize=["first", "num_rows"])
def pairwise_kernel(
    p_z,  # [rows, columns] logits without their bias in, ∂ℓ/∂z out
    p_d_labels,  # [rows, columns] out
    p_sums,  # [3, programs] out: ℓ, Σ (z − bias) ∂ℓ/∂z, Σ ∂ℓ/∂z
    p_labels,  # [rows, columns]
    p_bias,  # []
    p_positives,  # []
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
    b_cosine = tl.load(p_z + o, mask=m, other=0.0)
    b_z = b_cosine + tl.load(p_bias).to(tl.float32)
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
    of_positive, of_rest = pair_weights(p_positives, num_columns, KIND, IDENTITY)
    b_weight = tl.where(m, tl.where(b_s > 0.5, of_positive, of_rest), 0.0)
    num_programs = tl.num_programs(0) * tl.num_programs(1)
    p_sum = p_sums + i_row * tl.num_programs(0) + i_column
    tl.store(p_sum, sum_of_all(b_weight * b_loss))
    if DIFFERENTIATE:
        b_slope *= b_weight
        tl.store(p_z + o, b_slope, mask=m)
        tl.store(p_sum + num_programs, sum_of_all(b_slope * b_cosine))
        tl.store(p_sum + 2 * num_programs, sum_of_all(b_slope))
        if OF_LABELS:
            tl.store(p_d_labels + o, b_weight * b_of_label, mask=m)


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
    FIRST: tl.constexpr,
    SHARPENED: tl.constexpr,
    STRIP: tl.constexpr,
):
    """A program owns STRIP columns, and merges their row blocks in order: sums against lower peaks shrink."""
    o_column = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    m = o_column < num_columns
    p_own = p_state + o_column
    if FIRST:
        b_peak = tl.full([STRIP], -3.4e38, tl.float64)
        b_sharp_peak = b_peak
        b_first = tl.zeros([STRIP], tl.float64)
        b_second, b_third = b_first, b_first
    else:
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
    p_sums,  # [programs] out: Σ z ∂ℓ/∂z
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
    tl.store(p_sums + i_row * tl.num_programs(0) + i_column, sum_of_all(b_slope * b_z))


@triton.jit(do_not_specialize=["num_lines"])
def line_numbers_kernel(
    p_of_rows,  # [lines, 5] out
    p_of_columns,  # [5, lines] out
    p_losses,  # [2, lines] float64 out
    p_rows,  # [lines, 5] float64
    p_columns,  # [5, lines] float64
    num_lines,
    KIND: tl.constexpr,
    STRIP: tl.constexpr,
):
    """A program owns STRIP rows, or columns; see steps.py, whose names these are."""
    i_side, o = tl.program_id(1), tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    m = o < num_lines
    p_numbers, p_out, line_stride, number_stride = p_rows, p_of_rows, 5, 1
    if i_side == 1:
        p_numbers, p_out, line_stride, number_stride = p_columns, p_of_columns, 1, num_lines
    p_own, p_out = p_numbers + o * line_stride, p_out + o * line_stride
    b_peak = tl.load(p_own, mask=m, other=0.0)
    b_total = tl.load(p_own + 2 * number_stride, mask=m, other=1.0)
    b_second = tl.load(p_own + 3 * number_stride, mask=m, other=1.0)
    b_third = tl.load(p_own + 4 * number_stride, mask=m, other=0.0)
    b_log_total, n = tl.log(b_total), num_lines.to(tl.float64)
    if KIND == "kl":
        b_sharp_peak = tl.load(p_own + number_stride, mask=m, other=0.0)
        a, b_mean = 1.0 / (n * n), b_third / b_second
        b_loss = 0.5 * a * (b_mean - tl.log(b_second) + b_log_total)
        b_2, b_3, b_4 = b_sharp_peak, a / b_second, b_mean + b_sharp_peak - b_peak
        b_weight = a / b_total
    else:
        # The line's loss is −u Σ S log p.
        b_sum_log = b_third - b_second * b_log_total
        b_3 = b_peak + b_log_total
        if KIND == "cwcl":
            b_2 = 1.0 / (n * (b_second + _EPS))
            b_3 += b_sum_log / (b_second + _EPS)
        else:
            b_2 = tl.zeros([STRIP], tl.float64) + 1.0 / n
        b_4, b_loss = b_2, -0.5 * b_2 * b_sum_log
        b_weight = b_second * b_2 / b_total
    tl.store(p_losses + i_side * num_lines + o, b_loss, mask=m)
    tl.store(p_out, b_peak.to(tl.float32), mask=m)
    tl.store(p_out + number_stride, b_weight.to(tl.float32), mask=m)
    tl.store(p_out + 2 * number_stride, b_2.to(tl.float32), mask=m)
    tl.store(p_out + 3 * number_stride, b_3.to(tl.float32), mask=m)
    tl.store(p_out + 4 * number_stride, b_4.to(tl.float32), mask=m)


@triton.jit
def add_up(p_value, count, SUMMED: tl.constexpr):
    """In float64, in an order that is always the same."""
    o = tl.arange(0, SUMMED)
    b_total = tl.zeros([SUMMED], tl.float64)
    for i in range(0, count, SUMMED):
        b_total += tl.load(p_value + i + o, mask=i + o < count, other=0.0).to(tl.float64)
    return tl.sum(b_total, axis=0)


@triton.jit
def store_number(p, number):
    if p.dtype.element_ty == tl.float64:
        tl.store(p, number)
    else:
        # To a half there is no way but through float32.
        tl.store(p, number.to(tl.float32))


@triton.jit(do_not_specialize=["num_losses", "num_slopes"])
def totals_kernel(
    p_value,  # [] out
    p_of_temperature,  # [] out
    p_of_bias,  # [] out
    p_losses,  # [num_losses]
    p_along,  # [num_slopes]
    p_slopes,  # [num_slopes]
    p_temperature,  # []
    num_losses,
    num_slopes,
    DIFFERENTIATE: tl.constexpr,
    BIASED: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """One program: the loss, and its gradients in temperature and bias."""
    store_number(p_value, add_up(p_losses, num_losses, SUMMED))
    if DIFFERENTIATE:
        of_temperature = -add_up(p_along, num_slopes, SUMMED) / tl.load(p_temperature).to(tl.float64)
        store_number(p_of_temperature, of_temperature)
        if BIASED:
            store_number(p_of_bias, add_up(p_slopes, num_slopes, SUMMED))
        else:
            store_number(p_of_bias, tl.zeros([], tl.float64))


def unit_pairs(images: Tensor, texts: Tensor, temperature: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, width = images.shape
    units, scales = images.new_empty(2, rows, width, dtype=dtype), images.new_empty(2, rows, 1, dtype=torch.float32)
    unit_pairs_kernel[(triton.cdiv(rows, _VECTORS), 2)](
        p_units=units,
        p_scales=scales,
        p_images=images,
        p_texts=texts,
        p_temperature=temperature,
        num_rows=rows,
        width=width,
        ROWS=_VECTORS,
        LINE=_LINE,
        **OPTIONS,
    )
    return units, scales


def through_norms(
    gradients: tuple[Tensor, Tensor], units: Tensor, scales: Tensor, temperature: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    _, rows, width = units.shape
    found = [v if v.dtype == dtype else torch.empty_like(v, dtype=dtype) for v in gradients]
    through_norms_kernel[(triton.cdiv(rows, _VECTORS), 2)](
        p_of_images=found[0],
        p_of_texts=found[1],
        p_image_slopes=gradients[0],
        p_text_slopes=gradients[1],
        p_units=units,
        p_scales=scales,
        p_temperature=temperature,
        num_rows=rows,
        width=width,
        ROWS=_VECTORS,
        LINE=_LINE,
        **OPTIONS,
    )
    return found


def pairwise(
    kind: str,
    z: Tensor,
    labels: Tensor | None,
    d_labels: Tensor | None,
    first: int,
    bias: Tensor,
    positives: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grid = _grid(z)
    sums = z.new_empty(3, grid[0] * grid[1])
    pairwise_kernel[grid](
        p_z=z,
        p_d_labels=z if d_labels is None else d_labels,
        p_sums=sums,
        p_labels=z if labels is None else labels,
        p_bias=bias,
        p_positives=bias if positives is None else positives,
        KIND=kind,
        DIFFERENTIATE=differentiate,
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **_common(z, labels, first),
    )
    return sums[0], sums[1], sums[2]


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
        FIRST=first == 0,
        SHARPENED=kind == "kl",
        STRIP=_STRIP,
        num_warps=2,
    )
    del common["num_rows"]
    row_numbers_kernel[(len(z),)](p_numbers=rows, LINE=_LINE, **tensors, **common)


def line_numbers(kind: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, of_columns = (torch.empty_like(v, dtype=torch.float32) for v in (rows, columns))
    losses = rows.new_empty(2, len(rows))
    line_numbers_kernel[(triton.cdiv(len(rows), _LINES), 2)](
        p_of_rows=of_rows,
        p_of_columns=of_columns,
        p_losses=losses,
        p_rows=rows,
        p_columns=columns,
        num_lines=len(rows),
        KIND=kind,
        STRIP=_LINES,
        num_warps=4,
    )
    return of_rows, of_columns, losses


def softmax(
    kind: str,
    z: Tensor,
    labels: Tensor | None,
    d_labels: Tensor | None,
    first: int,
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    grid = _grid(z)
    sums = z.new_empty(grid[0] * grid[1])
    softmax_kernel[grid](
        p_z=z,
        p_d_labels=z if d_labels is None else d_labels,
        p_sums=sums,
        p_labels=z if labels is None else labels,
        p_rows=rows,
        p_columns=columns,
        SHARPENED=kind == "kl",
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **_common(z, labels, first),
    )
    return sums


def totals(
    losses: Tensor,
    along: Tensor | None,
    slopes: Tensor | None,
    temperature: Tensor,
    bias: Tensor,
    dtype: torch.dtype,
) -> list[Tensor]:
    value, of_temperature, of_bias = losses.new_empty((), dtype=dtype), *map(torch.empty_like, (temperature, bias))
    totals_kernel[(1,)](
        p_value=value,
        p_of_temperature=of_temperature,
        p_of_bias=of_bias,
        p_losses=losses,
        p_along=losses if along is None else along,
        p_slopes=losses if slopes is None else slopes,
        p_temperature=temperature,
        num_losses=losses.numel(),
        num_slopes=0 if along is None else along.numel(),
        DIFFERENTIATE=along is not None,
        BIASED=slopes is not None,
        SUMMED=_SUMMED,
        **OPTIONS,
    )
    return [value] if along is None else [value, of_temperature, of_bias]


def _common(z: Tensor, labels: Tensor | None, first: int) -> dict[str, Any]:
    return {
        "first": first,
        "label_stride": 0 if labels is None else labels.stride(0),
        "num_rows": z.shape[0],
        "num_columns": z.shape[1],
        "IDENTITY": labels is None,
        **OPTIONS,
    }


def _grid(z: Tensor) -> tuple[int, int]:
    return triton.cdiv(z.shape[1], _COLUMNS), triton.cdiv(z.shape[0], _ROWS)
