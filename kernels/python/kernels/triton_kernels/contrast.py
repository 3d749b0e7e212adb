"""Tiles of the soft-label contrastive losses. The contract is dispatch.py's `TiledImplementation`.

The five statistics and coefficients of rows and columns, their slots and formulas are those of steps.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ptmst.kernels import reference, steps
from ptmst.kernels.triton_kernels.tiles import OPTIONS

_ROWS, _COLUMNS = 8, 128
"""Logits per program."""
_CHUNK = 1024
"""Logits of a row, or numbers of an embedding, that are summed at once."""
_VECTORS = 4
"""Embeddings per program."""
_STEP, _STRIP = 64, 64
"""Rows and columns of logits per program of the statistics of columns."""
_COEFFICIENTS = 128
"""Rows, or columns, per program of the coefficients."""
_SUMMED = 4096
"""Numbers that are summed at once."""

EPS, SHARPNESS, LOG_FLOOR = (tl.constexpr(v) for v in (reference.EPS, reference.SHARPNESS, reference.LOG_FLOOR))
LOWEST, SMALLEST_NORM = tl.constexpr(steps.LOWEST), tl.constexpr(steps.SMALLEST_NORM)
NUM_STATS, LOGIT_MAX, LOGIT_SCALE = (tl.constexpr(v) for v in (steps.NUM_STATS, steps.LOGIT_MAX, steps.LOGIT_SCALE))
LABEL_MAX, EXP_SUM, LABEL_SUM = (tl.constexpr(v) for v in (steps.LABEL_MAX, steps.EXP_SUM, steps.LABEL_SUM))
CROSS_SUM, LABEL_WEIGHT, OFFSET = (tl.constexpr(v) for v in (steps.CROSS_SUM, steps.LABEL_WEIGHT, steps.OFFSET))
SHARP_MAX, SHARP_SCALE = tl.constexpr(steps.SHARP_MAX), tl.constexpr(steps.SHARP_SCALE)
SHARP_OFFSET = tl.constexpr(steps.SHARP_OFFSET)


@triton.jit
def own_vectors(num_rows, width, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    """The rows of a program → offsets in a chunk [1, CHUNK], numbers [ROWS], mask [ROWS, 1] and begins [ROWS, 1]."""
    o, o_row = tl.arange(0, CHUNK)[None, :], tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return o, o_row, (o_row < num_rows)[:, None], (o_row.to(tl.int64) * width)[:, None]


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
    CHUNK: tl.constexpr,
):
    """u = v / scale; scale = |v|, of images times the temperature. A program owns ROWS rows of images or of texts."""
    i_side = tl.program_id(1)
    o, o_row, m_row, begin = own_vectors(num_rows, width, ROWS, CHUNK)
    p_vectors = p_images
    if i_side == 1:
        p_vectors, p_units, p_scales = p_texts, p_units + num_rows.to(tl.int64) * width, p_scales + num_rows
    b_squares = tl.zeros([ROWS, CHUNK], tl.float32)
    for i in range(0, width, CHUNK):
        b_vector = tl.load(p_vectors + begin + i + o, mask=m_row & (i + o < width), other=0.0).to(tl.float32)
        b_squares += b_vector * b_vector
    b_scale = tl.maximum(tl.sqrt(tl.sum(b_squares, axis=1)), SMALLEST_NORM)
    if i_side == 0:
        b_scale *= tl.load(p_temperature).to(tl.float32)
    tl.store(p_scales + o_row, b_scale, mask=o_row < num_rows)
    for i in range(0, width, CHUNK):
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
    CHUNK: tl.constexpr,
):
    """(g − u ⟨g, u⟩ / |u|²) / scale; |u| = 1 of texts, 1/temperature of images. A program owns ROWS rows of either."""
    i_side = tl.program_id(1)
    o, o_row, m_row, begin = own_vectors(num_rows, width, ROWS, CHUNK)
    p_out, p_slopes, length = p_of_images, p_image_slopes, 1.0 / tl.load(p_temperature).to(tl.float32)
    if i_side == 1:
        p_out, p_slopes, length = p_of_texts, p_text_slopes, 1.0
        p_units, p_scales = p_units + num_rows.to(tl.int64) * width, p_scales + num_rows
    b_along = tl.zeros([ROWS, CHUNK], tl.float32)
    for i in range(0, width, CHUNK):
        m = m_row & (i + o < width)
        b_unit = tl.load(p_units + begin + i + o, mask=m, other=0.0).to(tl.float32)
        b_along += tl.load(p_slopes + begin + i + o, mask=m, other=0.0) * b_unit
    b_along = tl.sum(b_along, axis=1, keep_dims=True) / (length * length)
    b_scale = tl.load(p_scales + o_row, mask=o_row < num_rows, other=1.0)[:, None]
    for i in range(0, width, CHUNK):
        m = m_row & (i + o < width)
        b_unit = tl.load(p_units + begin + i + o, mask=m, other=0.0).to(tl.float32)
        b_slope = tl.load(p_slopes + begin + i + o, mask=m, other=0.0)
        tl.store(p_out + begin + i + o, (b_slope - b_unit * b_along) / b_scale, mask=m)


@triton.jit
def own_pairs(num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The pairs of a program → rows [ROWS, 1], columns [1, COLUMNS], a mask of each, and offsets [ROWS, COLUMNS]."""
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    o_row = (i_row * ROWS + tl.arange(0, ROWS))[:, None]
    o_column = (i_column * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    return o_row, o_column, o_row < num_rows, o_column < num_columns, o_row.to(tl.int64) * num_columns + o_column


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
    """log(1 + u) for 0 ≤ u ≤ 1, corrected for the rounding of 1 + u."""
    b_w = 1.0 + b_u
    return tl.log(b_w) + (b_u - (b_w - 1.0)) / b_w


@triton.jit
def sum_of_all(b_value):
    return tl.sum(tl.sum(b_value, axis=1), axis=0)


@triton.jit
def own_sum(p_sums):
    """The place of a program's sum."""
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    return p_sums + i_row * tl.num_programs(0) + i_column


@triton.jit
def pair_weights(p_positives, num_columns, KIND: tl.constexpr, IDENTITY: tl.constexpr):
    """The weights of pairs with S > ½ and of the others; n = num_columns.

    wbce  ½ / (count + ε), ½ / (n² − count + ε), with the count of pairs with S > ½      siglip  1/n      else  1/n²
    """
    n = tl.full([], num_columns, tl.float64)
    if KIND == "wbce":
        if IDENTITY:
            count = n
        else:
            count = tl.load(p_positives).to(tl.float64)
        positive, negative = 0.5 / (count + EPS), 0.5 / (n * n - count + EPS)
    else:
        if KIND == "siglip":
            positive = 1.0 / n
        else:
            positive = 1.0 / (n * n)
        negative = positive
    return positive.to(tl.float32), negative.to(tl.float32)


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

    Of each pair, before its weight, with σ = 1 / (1 + exp(−z)):
               ℓ                                        ∂ℓ/∂z                                    ∂ℓ/∂S
    wbce       −S log(σ + ε) − (1−S) log(1 − σ + ε)     σ(1−σ) ((1−S)/(1−σ+ε) − S/(σ+ε))         log(1−σ+ε) − log(σ+ε)
    siglip     −S log σ − (1−S) log(1 − σ)              σ − S                                    log(1−σ) − log σ
    bce        as siglip, with logarithms clamped at LOG_FLOOR, where they have no gradient
    mse        (σ − S)²                                 2 (σ − S) σ (1 − σ)                      −2 (σ − S)
    """
    o_row, o_column, m_row, m_column, o = own_pairs(num_rows, num_columns, ROWS, COLUMNS)
    m = m_row & m_column
    b_cosine = tl.load(p_z + o, mask=m, other=0.0)
    b_z = b_cosine + tl.load(p_bias).to(tl.float32)
    b_s = labels_of(p_labels, o_row, o_column, m, first, label_stride, IDENTITY)
    # σ(|z|) and σ(−|z|): positive is σ, negative 1 − σ.
    b_e = tl.exp(-tl.abs(b_z))
    b_near = 1.0 / (1.0 + b_e)
    b_far = b_e * b_near
    b_positive, b_negative = tl.where(b_z < 0.0, b_far, b_near), tl.where(b_z < 0.0, b_near, b_far)
    if KIND == "mse":
        b_off = b_positive - b_s
        b_loss = b_off * b_off
        b_slope = 2.0 * b_off * b_positive * b_negative
        b_of_label = -2.0 * b_off
    else:
        if KIND == "wbce":
            b_log_positive, b_log_negative = tl.log(b_positive + EPS), tl.log(b_negative + EPS)
            b_slope = b_positive * b_negative * ((1.0 - b_s) / (b_negative + EPS) - b_s / (b_positive + EPS))
        else:
            b_tail = log_1p(b_e)
            b_log_positive, b_log_negative = tl.minimum(b_z, 0.0) - b_tail, tl.minimum(-b_z, 0.0) - b_tail
            if KIND == "bce":
                b_slope = tl.where(b_log_negative > LOG_FLOOR, (1.0 - b_s) * b_positive, 0.0)
                b_slope -= tl.where(b_log_positive > LOG_FLOOR, b_s * b_negative, 0.0)
                b_log_positive, b_log_negative = (
                    tl.maximum(b_log_positive, LOG_FLOOR),
                    tl.maximum(b_log_negative, LOG_FLOOR),
                )
            else:
                b_slope = b_positive - b_s
        b_loss = -b_s * b_log_positive - (1.0 - b_s) * b_log_negative
        b_of_label = b_log_negative - b_log_positive
    positive_weight, negative_weight = pair_weights(p_positives, num_columns, KIND, IDENTITY)
    b_weight = tl.where(m, tl.where(b_s > 0.5, positive_weight, negative_weight), 0.0)
    num_programs = tl.num_programs(0) * tl.num_programs(1)
    p_sum = own_sum(p_sums)
    tl.store(p_sum, sum_of_all(b_weight * b_loss))
    if DIFFERENTIATE:
        b_slope *= b_weight
        tl.store(p_z + o, b_slope, mask=m)
        tl.store(p_sum + num_programs, sum_of_all(b_slope * b_cosine))
        tl.store(p_sum + 2 * num_programs, sum_of_all(b_slope))
        if OF_LABELS:
            tl.store(p_d_labels + o, b_weight * b_of_label, mask=m)


@triton.jit
def store_stats(p, stride, b_logit_max, b_label_max, b_exp_sum, b_label_sum, b_cross_sum, m):
    """The five statistics, at p and strides from there."""
    tl.store(p + LOGIT_MAX * stride, b_logit_max, mask=m)
    tl.store(p + LABEL_MAX * stride, b_label_max, mask=m)
    tl.store(p + EXP_SUM * stride, b_exp_sum, mask=m)
    tl.store(p + LABEL_SUM * stride, b_label_sum, mask=m)
    tl.store(p + CROSS_SUM * stride, b_cross_sum, mask=m)


@triton.jit(do_not_specialize=["first"])
def softmax_stats_rows_kernel(
    p_stats,  # [rows, 5] float64 out
    p_z,  # [rows, columns]
    p_labels,  # [rows, columns]
    first,
    label_stride,
    num_columns,
    SHARPENED: tl.constexpr,
    IDENTITY: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The statistics of a row, which a program owns: maxima first, then the sums, in float64.

               LOGIT_MAX    LABEL_MAX    EXP_SUM         LABEL_SUM         CROSS_SUM
    linear     m = max z    LOWEST       Σ exp(z − m)    Σ S               Σ S (z − m)
    kl         m = max z    m′ = max x   Σ exp(z − m)    Σ exp(x − m′)     Σ exp(x − m′) ((x − m′) − (z − m))
    """
    i_row = tl.program_id(0)
    o = tl.arange(0, CHUNK)
    p_row = p_z + i_row.to(tl.int64) * num_columns
    b_logit_max = tl.full([CHUNK], LOWEST, tl.float32)
    b_label_max = tl.full([CHUNK], LOWEST, tl.float32)
    for i in range(0, num_columns, CHUNK):
        o_column = i + o
        m = o_column < num_columns
        b_logit_max = tl.maximum(b_logit_max, tl.load(p_row + o_column, mask=m, other=LOWEST))
        if SHARPENED:
            b_s = labels_of(p_labels, i_row, o_column, m, first, label_stride, IDENTITY)
            b_label_max = tl.maximum(b_label_max, tl.where(m, SHARPNESS * b_s, LOWEST))
    logit_max, label_max = tl.max(b_logit_max, axis=0), tl.max(b_label_max, axis=0)
    b_exp_sum = tl.zeros([CHUNK], tl.float64)
    b_label_sum = tl.zeros([CHUNK], tl.float64)
    b_cross_sum = tl.zeros([CHUNK], tl.float64)
    for i in range(0, num_columns, CHUNK):
        o_column = i + o
        m = o_column < num_columns
        b_z = tl.load(p_row + o_column, mask=m, other=0.0) - logit_max
        b_s = labels_of(p_labels, i_row, o_column, m, first, label_stride, IDENTITY)
        b_exp_sum += tl.where(m, tl.exp(b_z), 0.0)
        if SHARPENED:
            b_x = SHARPNESS * b_s - label_max
            b_exp_x = tl.where(m, tl.exp(b_x), 0.0)
            b_label_sum += b_exp_x
            b_cross_sum += b_exp_x * (b_x - b_z)
        else:
            b_label_sum += tl.where(m, b_s, 0.0)
            b_cross_sum += tl.where(m, b_s * b_z, 0.0)
    store_stats(
        p_stats + i_row.to(tl.int64) * NUM_STATS,
        1,
        logit_max.to(tl.float64),
        label_max.to(tl.float64),
        tl.sum(b_exp_sum, axis=0),
        tl.sum(b_label_sum, axis=0),
        tl.sum(b_cross_sum, axis=0),
        None,
    )


@triton.jit(do_not_specialize=["first", "num_rows"])
def softmax_stats_columns_kernel(
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
    """The statistics of columns, as those of rows. A program owns STRIP columns of a block of ROWS rows."""
    i_column, i_row = tl.program_id(0), tl.program_id(1)
    o_row = (i_row * ROWS + tl.arange(0, ROWS))[:, None]
    o_column = i_column * STRIP + tl.arange(0, STRIP)
    m_column = o_column < num_columns
    m = (o_row < num_rows) & m_column[None, :]
    b_z = tl.load(p_z + o_row.to(tl.int64) * num_columns + o_column[None, :], mask=m, other=LOWEST)
    b_s = labels_of(p_labels, o_row, o_column[None, :], m, first, label_stride, IDENTITY)
    b_logit_max = tl.max(b_z, axis=0)
    b_z = tl.where(m, b_z - b_logit_max[None, :], 0.0)
    b_exp_sum = tl.sum(tl.where(m, tl.exp(b_z), 0.0), axis=0)
    if SHARPENED:
        b_label_max = tl.max(tl.where(m, SHARPNESS * b_s, LOWEST), axis=0)
        b_x = SHARPNESS * b_s - b_label_max[None, :]
        b_exp_x = tl.where(m, tl.exp(b_x), 0.0)
        b_label_sum = tl.sum(b_exp_x, axis=0)
        b_cross_sum = tl.sum(b_exp_x * (b_x - b_z), axis=0)
    else:
        b_label_max = tl.full([STRIP], LOWEST, tl.float32)
        b_label_sum = tl.sum(tl.where(m, b_s, 0.0), axis=0)
        b_cross_sum = tl.sum(tl.where(m, b_s * b_z, 0.0), axis=0)
    p_own = p_partial + i_row.to(tl.int64) * NUM_STATS * num_columns + o_column
    store_stats(p_own, num_columns, b_logit_max, b_label_max, b_exp_sum, b_label_sum, b_cross_sum, m_column)


@triton.jit(do_not_specialize=["num_blocks"])
def softmax_stats_merge_kernel(
    p_stats,  # [5, columns] float64 in and out
    p_partial,  # [row blocks, 5, columns]
    num_blocks,
    num_columns,
    FIRST: tl.constexpr,
    SHARPENED: tl.constexpr,
    STRIP: tl.constexpr,
):
    """Adds the statistics of row blocks to those so far, in order. A program owns STRIP columns.

    Sums relative to maxima m, m′ become sums relative to larger ones, M, M′, with f = m − M and g = m′ − M′:
               EXP_SUM           LABEL_SUM           CROSS_SUM
    linear     EXP_SUM exp f     LABEL_SUM           CROSS_SUM + LABEL_SUM f
    kl         EXP_SUM exp f     LABEL_SUM exp g     (CROSS_SUM + LABEL_SUM (g − f)) exp g
    """
    o_column = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    m = o_column < num_columns
    p_own = p_stats + o_column
    if FIRST:
        b_logit_max = tl.full([STRIP], LOWEST, tl.float64)
        b_label_max = b_logit_max
        b_exp_sum = tl.zeros([STRIP], tl.float64)
        b_label_sum, b_cross_sum = b_exp_sum, b_exp_sum
    else:
        b_logit_max = tl.load(p_own + LOGIT_MAX * num_columns, mask=m, other=0.0)
        b_label_max = tl.load(p_own + LABEL_MAX * num_columns, mask=m, other=0.0)
        b_exp_sum = tl.load(p_own + EXP_SUM * num_columns, mask=m, other=0.0)
        b_label_sum = tl.load(p_own + LABEL_SUM * num_columns, mask=m, other=0.0)
        b_cross_sum = tl.load(p_own + CROSS_SUM * num_columns, mask=m, other=0.0)
    p_new = p_partial + o_column
    for _ in range(num_blocks):
        b_new_logit_max = tl.load(p_new + LOGIT_MAX * num_columns, mask=m, other=0.0).to(tl.float64)
        b_new_label_max = tl.load(p_new + LABEL_MAX * num_columns, mask=m, other=0.0).to(tl.float64)
        b_top, b_label_top = tl.maximum(b_logit_max, b_new_logit_max), tl.maximum(b_label_max, b_new_label_max)
        b_f, b_new_f = b_logit_max - b_top, b_new_logit_max - b_top
        b_new_exp_sum = tl.load(p_new + EXP_SUM * num_columns, mask=m, other=0.0).to(tl.float64)
        b_new_label_sum = tl.load(p_new + LABEL_SUM * num_columns, mask=m, other=0.0).to(tl.float64)
        b_new_cross_sum = tl.load(p_new + CROSS_SUM * num_columns, mask=m, other=0.0).to(tl.float64)
        b_exp_sum = b_exp_sum * tl.exp(b_f) + b_new_exp_sum * tl.exp(b_new_f)
        if SHARPENED:
            b_g, b_new_g = b_label_max - b_label_top, b_new_label_max - b_label_top
            b_exp_g, b_new_exp_g = tl.exp(b_g), tl.exp(b_new_g)
            b_cross_sum = (b_cross_sum + b_label_sum * (b_g - b_f)) * b_exp_g
            b_cross_sum += (b_new_cross_sum + b_new_label_sum * (b_new_g - b_new_f)) * b_new_exp_g
            b_label_sum = b_label_sum * b_exp_g + b_new_label_sum * b_new_exp_g
        else:
            b_cross_sum += b_label_sum * b_f + b_new_cross_sum + b_new_label_sum * b_new_f
            b_label_sum += b_new_label_sum
        b_logit_max, b_label_max = b_top, b_label_top
        p_new += NUM_STATS * num_columns
    store_stats(p_own, num_columns, b_logit_max, b_label_max, b_exp_sum, b_label_sum, b_cross_sum, m)


@triton.jit(do_not_specialize=["num_pairs"])
def softmax_coefficients_kernel(
    p_of_rows,  # [pairs, 5] out
    p_of_columns,  # [5, pairs] out
    p_losses,  # [2, pairs] float64 out
    p_rows,  # [pairs, 5] float64
    p_columns,  # [5, pairs] float64
    num_pairs,
    KIND: tl.constexpr,
    STRIP: tl.constexpr,
):
    """From statistics to coefficients and terms of the loss. A program owns STRIP rows, or columns.

               LOGIT_SCALE · EXP_SUM    loss                                                     with n = num_pairs and
    infonce    LABEL_SUM · u            −u/2 Σ S log p                                           u = 1/n
    cwcl       LABEL_SUM · u            −u/2 Σ S log p                                           u = 1/(n w)
    kl         a                        a/2 (mean − log LABEL_SUM + log EXP_SUM)                 a = 1/n²

    infonce    v = m + log EXP_SUM                         w = LABEL_SUM + ε
    cwcl       v = m + log EXP_SUM + Σ S log p / w         Σ S log p = CROSS_SUM − LABEL_SUM log EXP_SUM
    kl         v = mean + m′ − m                           mean = CROSS_SUM / LABEL_SUM
    """
    i_side, o = tl.program_id(1), tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    m = o < num_pairs
    p_own, p_out, step, stride = p_rows, p_of_rows, NUM_STATS, 1
    if i_side == 1:
        p_own, p_out, step, stride = p_columns, p_of_columns, 1, num_pairs
    p_own, p_out = p_own + o * step, p_out + o * step
    b_logit_max = tl.load(p_own + LOGIT_MAX * stride, mask=m, other=0.0)
    b_exp_sum = tl.load(p_own + EXP_SUM * stride, mask=m, other=1.0)
    b_label_sum = tl.load(p_own + LABEL_SUM * stride, mask=m, other=1.0)
    b_cross_sum = tl.load(p_own + CROSS_SUM * stride, mask=m, other=0.0)
    b_log_exp_sum, n = tl.log(b_exp_sum), num_pairs.to(tl.float64)
    if KIND == "kl":
        b_label_max = tl.load(p_own + LABEL_MAX * stride, mask=m, other=0.0)
        a, b_mean = 1.0 / (n * n), b_cross_sum / b_label_sum
        b_loss = 0.5 * a * (b_mean - tl.log(b_label_sum) + b_log_exp_sum)
        b_slot_2, b_slot_3, b_slot_4 = b_label_max, a / b_label_sum, b_mean + b_label_max - b_logit_max
        b_scale = a / b_exp_sum
    else:
        b_sum_log = b_cross_sum - b_label_sum * b_log_exp_sum
        b_v = b_logit_max + b_log_exp_sum
        if KIND == "cwcl":
            b_u = 1.0 / (n * (b_label_sum + EPS))
            b_v += b_sum_log / (b_label_sum + EPS)
        else:
            b_u = tl.zeros([STRIP], tl.float64) + 1.0 / n
        b_slot_2, b_slot_3, b_slot_4 = b_u, b_v, b_u
        b_loss = -0.5 * b_u * b_sum_log
        b_scale = b_label_sum * b_u / b_exp_sum
    tl.store(p_losses + i_side * num_pairs + o, b_loss, mask=m)
    tl.store(p_out + LOGIT_MAX * stride, b_logit_max.to(tl.float32), mask=m)
    tl.store(p_out + LOGIT_SCALE * stride, b_scale.to(tl.float32), mask=m)
    tl.store(p_out + 2 * stride, b_slot_2.to(tl.float32), mask=m)
    tl.store(p_out + 3 * stride, b_slot_3.to(tl.float32), mask=m)
    tl.store(p_out + 4 * stride, b_slot_4.to(tl.float32), mask=m)


@triton.jit(do_not_specialize=["first", "num_rows"])
def softmax_gradient_kernel(
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
    """A program owns ROWS × COLUMNS pairs. The gradient of a pair is the sum of its row's and its column's:

               ∂ℓ/∂z             ∂ℓ/∂S                          p, q: softmaxes of z and of x = SHARPNESS · S
    linear     (a p − u S)/2     −u (z − v)/2                   a p = LOGIT_SCALE exp(z − LOGIT_MAX)
    kl         a (p − q)/2       SHARPNESS a q (x − z − v)/2    a q = SHARP_SCALE exp(x − SHARP_MAX)
    """
    o_row, o_column, m_row, m_column, o = own_pairs(num_rows, num_columns, ROWS, COLUMNS)
    m = m_row & m_column
    b_z = tl.load(p_z + o, mask=m, other=0.0)
    b_s = labels_of(p_labels, o_row, o_column, m, first, label_stride, IDENTITY)
    p_row, p_column = p_rows + o_row * NUM_STATS, p_columns + o_column
    b_row_scale = tl.load(p_row + LOGIT_SCALE, mask=m_row, other=0.0)
    b_p = b_row_scale * tl.exp(b_z - tl.load(p_row + LOGIT_MAX, mask=m_row, other=0.0))
    b_column_scale = tl.load(p_column + LOGIT_SCALE * num_columns, mask=m_column, other=0.0)
    b_p += b_column_scale * tl.exp(b_z - tl.load(p_column + LOGIT_MAX * num_columns, mask=m_column, other=0.0))
    if SHARPENED:
        b_row_max = tl.load(p_row + SHARP_MAX, mask=m_row, other=0.0)
        b_row_scale = tl.load(p_row + SHARP_SCALE, mask=m_row, other=0.0)
        b_column_max = tl.load(p_column + SHARP_MAX * num_columns, mask=m_column, other=0.0)
        b_column_scale = tl.load(p_column + SHARP_SCALE * num_columns, mask=m_column, other=0.0)
        b_x = SHARPNESS * b_s
        b_row_q, b_column_q = b_row_scale * tl.exp(b_x - b_row_max), b_column_scale * tl.exp(b_x - b_column_max)
        b_slope = 0.5 * (b_p - (b_row_q + b_column_q))
        if OF_LABELS:
            b_off = b_x - b_z
            b_row_v = tl.load(p_row + SHARP_OFFSET, mask=m_row, other=0.0)
            b_column_v = tl.load(p_column + SHARP_OFFSET * num_columns, mask=m_column, other=0.0)
            b_of_label = 0.5 * SHARPNESS * (b_row_q * (b_off - b_row_v) + b_column_q * (b_off - b_column_v))
            tl.store(p_d_labels + o, b_of_label, mask=m)
    else:
        b_row_u = tl.load(p_row + LABEL_WEIGHT, mask=m_row, other=0.0)
        b_row_v = tl.load(p_row + OFFSET, mask=m_row, other=0.0)
        b_column_u = tl.load(p_column + LABEL_WEIGHT * num_columns, mask=m_column, other=0.0)
        b_column_v = tl.load(p_column + OFFSET * num_columns, mask=m_column, other=0.0)
        b_slope = 0.5 * (b_p - b_s * (b_row_u + b_column_u))
        if OF_LABELS:
            b_of_label = -0.5 * (b_row_u * (b_z - b_row_v) + b_column_u * (b_z - b_column_v))
            tl.store(p_d_labels + o, b_of_label, mask=m)
    b_slope = tl.where(m, b_slope, 0.0)
    tl.store(p_z + o, b_slope, mask=m)
    tl.store(own_sum(p_sums), sum_of_all(b_slope * b_z))


@triton.jit
def add_up(p_value, count, SUMMED: tl.constexpr):
    """Σ in float64, in a fixed order."""
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
        # float64 converts to bfloat16 only through float32.
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
    """ℓ = Σ losses; ∂ℓ/∂τ = −Σ along / τ; ∂ℓ/∂b = Σ slopes, or 0. There is one program."""
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
        CHUNK=_CHUNK,
        **OPTIONS,
    )
    return units, scales


def through_norms(
    gradients: tuple[Tensor, Tensor], units: Tensor, scales: Tensor, temperature: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    _, rows, width = units.shape
    results = [v if v.dtype == dtype else torch.empty_like(v, dtype=dtype) for v in gradients]
    through_norms_kernel[(triton.cdiv(rows, _VECTORS), 2)](
        p_of_images=results[0],
        p_of_texts=results[1],
        p_image_slopes=gradients[0],
        p_text_slopes=gradients[1],
        p_units=units,
        p_scales=scales,
        p_temperature=temperature,
        num_rows=rows,
        width=width,
        ROWS=_VECTORS,
        CHUNK=_CHUNK,
        **OPTIONS,
    )
    return results


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
        first=first,
        label_stride=_stride(labels),
        num_rows=z.shape[0],
        num_columns=z.shape[1],
        KIND=kind,
        IDENTITY=labels is None,
        DIFFERENTIATE=differentiate,
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **OPTIONS,
    )
    return sums[0], sums[1], sums[2]


def softmax_stats(form: str, z: Tensor, labels: Tensor | None, first: int, rows: Tensor, columns: Tensor) -> None:
    sharpened, identity = form == "kl", labels is None
    softmax_stats_rows_kernel[(len(z),)](
        p_stats=rows,
        p_z=z,
        p_labels=z if labels is None else labels,
        first=first,
        label_stride=_stride(labels),
        num_columns=z.shape[1],
        SHARPENED=sharpened,
        IDENTITY=identity,
        CHUNK=_CHUNK,
        **OPTIONS,
    )
    grid = triton.cdiv(z.shape[1], _STRIP), triton.cdiv(z.shape[0], _STEP)
    partial = z.new_empty(grid[1], steps.NUM_STATS, z.shape[1])
    softmax_stats_columns_kernel[grid](
        p_partial=partial,
        p_z=z,
        p_labels=z if labels is None else labels,
        first=first,
        label_stride=_stride(labels),
        num_rows=z.shape[0],
        num_columns=z.shape[1],
        SHARPENED=sharpened,
        IDENTITY=identity,
        ROWS=_STEP,
        STRIP=_STRIP,
        **OPTIONS,
    )
    softmax_stats_merge_kernel[(grid[0],)](
        p_stats=columns,
        p_partial=partial,
        num_blocks=grid[1],
        num_columns=z.shape[1],
        FIRST=first == 0,
        SHARPENED=sharpened,
        STRIP=_STRIP,
        num_warps=2,
    )


def softmax_coefficients(kind: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_rows, of_columns = (torch.empty_like(v, dtype=torch.float32) for v in (rows, columns))
    losses = rows.new_empty(2, len(rows))
    softmax_coefficients_kernel[(triton.cdiv(len(rows), _COEFFICIENTS), 2)](
        p_of_rows=of_rows,
        p_of_columns=of_columns,
        p_losses=losses,
        p_rows=rows,
        p_columns=columns,
        num_pairs=len(rows),
        KIND=kind,
        STRIP=_COEFFICIENTS,
        num_warps=4,
    )
    return of_rows, of_columns, losses


def softmax_gradient(
    form: str,
    z: Tensor,
    labels: Tensor | None,
    d_labels: Tensor | None,
    first: int,
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    grid = _grid(z)
    sums = z.new_empty(grid[0] * grid[1])
    softmax_gradient_kernel[grid](
        p_z=z,
        p_d_labels=z if d_labels is None else d_labels,
        p_sums=sums,
        p_labels=z if labels is None else labels,
        p_rows=rows,
        p_columns=columns,
        first=first,
        label_stride=_stride(labels),
        num_rows=z.shape[0],
        num_columns=z.shape[1],
        SHARPENED=form == "kl",
        IDENTITY=labels is None,
        OF_LABELS=d_labels is not None,
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
        **OPTIONS,
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


def _stride(labels: Tensor | None) -> int:
    return 0 if labels is None else labels.stride(0)


def _grid(z: Tensor) -> tuple[int, int]:
    return triton.cdiv(z.shape[1], _COLUMNS), triton.cdiv(z.shape[0], _ROWS)
