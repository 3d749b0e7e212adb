// Tiles of the soft-label contrastive losses: value and gradient from logits z and soft labels S (METHOD §1).
//
// Losses that are sums over pairs (wbce, bce, mse, siglip) take one pass over a tile. Those with a softmax take two:
// `row_numbers` and `column_numbers` gather what a whole row or column is needed for, and once that is known
// `softmax` makes the gradient.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace {
namespace contrast {

using ptmst::Kind;
using ptmst::Tile;

constexpr Index kRun = 2048;    // pairs of a row that are summed in float before double takes over
constexpr float kSharp = 10.0f;  // KL compares with softmax(10 S)
constexpr float kLowest = -3.4e38f;

// Soft labels along a row: of the tile, or of the identity, where all are 0 but one.
template <int kValue>
struct Constant {
  template <class Lanes>
  Floats at(Index, const Lanes&) const {
    return all(kValue);
  }
};

struct Given {
  const float* row;
  template <class Lanes>
  Floats at(Index j, const Lanes& lanes) const {
    return lanes.load(row + j);
  }
};

// body(labels, begin, end) over columns [begin, end) of a row, in pieces whose labels are of one kind.
template <class Body>
inline void pieces(const Tile& tile, Index row, Index begin, Index end, const Body& body) {
  if (tile.labels) return body(Given{tile.labels + row * tile.label_stride}, begin, end);
  const Index own = tile.first + row;
  if (own < begin || own >= end) return body(Constant<0>{}, begin, end);
  if (begin < own) body(Constant<0>{}, begin, own);
  body(Constant<1>{}, own, own + 1);
  if (own + 1 < end) body(Constant<0>{}, own + 1, end);
}

template <class Body>
inline void runs(Index begin, Index end, const Body& body) {
  for (; begin < end; begin += kRun) body(begin, begin + kRun < end ? begin + kRun : end);
}

struct Pair {
  Floats loss, slope, of_label;  // ℓ, ∂ℓ/∂z, ∂ℓ/∂S, before weights
};

template <Kind kKind>
inline Pair pair(Floats z, Floats s) {
  const Floats magnitude = z < 0.0f ? -z : z, e = exponential(-magnitude);
  const Floats near = 1.0f / (1.0f + e), far = e * near;  // σ(|z|), σ(−|z|)
  const Floats yes = z < 0.0f ? far : near, no = z < 0.0f ? near : far;
  if constexpr (kKind == ptmst::kWbce) {
    // The published log(σ + 1e-6): at σ(−1/0.07) ≈ 6e-7 the constant sets the gradient.
    const Floats log_yes = logarithm(yes + 1e-6f), log_no = logarithm(no + 1e-6f), both = yes * no;
    return {-s * log_yes - (1.0f - s) * log_no, both * ((1.0f - s) / (no + 1e-6f) - s / (yes + 1e-6f)),
            log_no - log_yes};
  } else if constexpr (kKind == ptmst::kMse) {
    const Floats off = yes - s;
    return {off * off, 2.0f * off * yes * no, -2.0f * off};
  } else {
    const Floats tail = logarithm_1p(e);
    Floats log_yes = smallest(z, Floats{}) - tail, log_no = smallest(-z, Floats{}) - tail;
    if constexpr (kKind == ptmst::kSiglip) return {-s * log_yes - (1.0f - s) * log_no, yes - s, log_no - log_yes};
    // torch's binary cross-entropy, and so the published one, cuts logarithms off at −100.
    const Floats slope = (log_no > -100.0f ? (1.0f - s) * yes : Floats{}) - (log_yes > -100.0f ? s * no : Floats{});
    log_yes = largest(log_yes, all(-100.0f)), log_no = largest(log_no, all(-100.0f));
    return {-s * log_yes - (1.0f - s) * log_no, slope, log_no - log_yes};
  }
}

template <Kind kKind>
inline void pairwise_row(float* z, float* d_labels, const Tile& tile, Index row, const float* weights,
                         bool differentiate, double* sums) {
  float* const logits = z + row * tile.columns;
  pieces(tile, row, 0, tile.columns, [&](auto labels, Index from, Index to) {
    runs(from, to, [&](Index begin, Index end) {
      Floats positive{}, negative{}, along{}, slopes{};
      registers(begin, end, [&](Index j, auto lanes) {
        const Floats value = lanes.load(logits + j), s = labels.at(j, lanes);
        const Pair found = pair<kKind>(value, s);
        const Floats weight = s > 0.5f ? all(weights[0]) : all(weights[1]), loss = lanes.keep(found.loss, 0);
        positive += s > 0.5f ? loss : Floats{};
        negative += s > 0.5f ? Floats{} : loss;
        if (!differentiate) return;
        const Floats slope = weight * found.slope;
        lanes.store(logits + j, slope);
        along += lanes.keep(slope * value, 0);
        slopes += lanes.keep(slope, 0);
        if (d_labels) lanes.store(d_labels + row * tile.columns + j, weight * found.of_label);
      });
      sums[0] += sum(positive), sums[1] += sum(negative), sums[2] += sum(along), sums[3] += sum(slopes);
    });
  });
}

void pairwise(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* weights,
              bool differentiate, double* sums) {
  switch (kind) {
    case ptmst::kWbce: return pairwise_row<ptmst::kWbce>(z, d_labels, tile, row, weights, differentiate, sums);
    case ptmst::kBce: return pairwise_row<ptmst::kBce>(z, d_labels, tile, row, weights, differentiate, sums);
    case ptmst::kMse: return pairwise_row<ptmst::kMse>(z, d_labels, tile, row, weights, differentiate, sums);
    default: return pairwise_row<ptmst::kSiglip>(z, d_labels, tile, row, weights, differentiate, sums);
  }
}

// What is summed along a row or column whose largest z is m. Linear losses: exp(z − m), S, S (z − m). KL, with x = 10 S
// and m′ the largest: exp(z − m), exp(x − m′), exp(x − m′)((x − m′) − (z − m)). Peaks are taken off before anything is
// summed, since the loss is a small difference.
template <bool kSharpened>
inline void gather(Floats z, Floats s, Floats peak, Floats sharp_peak, Floats* found) {
  const Floats below = z - peak;
  found[0] = exponential(below);
  if constexpr (kSharpened) {
    const Floats sharp_below = kSharp * s - sharp_peak;
    found[1] = exponential(sharp_below);
    found[2] = found[1] * (sharp_below - below);
  } else {
    found[1] = s;
    found[2] = s * below;
  }
}

// numbers: m, m′, and the three sums.
template <bool kSharpened>
inline void gather_row(const float* z, const Tile& tile, Index row, double* numbers) {
  const float* const logits = z + row * tile.columns;
  Floats peaks = all(kLowest), sharp_peaks = all(kLowest);
  pieces(tile, row, 0, tile.columns, [&](auto labels, Index begin, Index end) {
    registers(begin, end, [&](Index j, auto lanes) {
      peaks = largest(peaks, lanes.keep(lanes.load(logits + j), kLowest));
      if constexpr (kSharpened) sharp_peaks = largest(sharp_peaks, lanes.keep(kSharp * labels.at(j, lanes), kLowest));
    });
  });
  const float peak = most(peaks), sharp_peak = kSharpened ? most(sharp_peaks) : 0.0f;
  numbers[0] = static_cast<double>(peak), numbers[1] = static_cast<double>(sharp_peak);
  numbers[2] = numbers[3] = numbers[4] = 0;
  pieces(tile, row, 0, tile.columns, [&](auto labels, Index from, Index to) {
    runs(from, to, [&](Index begin, Index end) {
      Floats totals[3] = {};
      registers(begin, end, [&](Index j, auto lanes) {
        Floats found[3];
        gather<kSharpened>(lanes.load(logits + j), labels.at(j, lanes), all(peak), all(sharp_peak), found);
        for (int k = 0; k < 3; ++k) totals[k] += lanes.keep(found[k], 0);
      });
      for (int k = 0; k < 3; ++k) numbers[2 + k] += sum(totals[k]);
    });
  });
}

void row_numbers(Kind kind, const float* z, const Tile& tile, Index row, double* numbers) {
  kind == ptmst::kDivergence ? gather_row<true>(z, tile, row, numbers) : gather_row<false>(z, tile, row, numbers);
}

inline double factor(double fall) { return static_cast<double>(exponential(all(static_cast<float>(fall)))[0]); }

// Soft labels of a register of columns in a row.
struct OwnColumn {
  const Tile& tile;
  template <class Lanes>
  Floats at(Index row, Index column, const Lanes&) const {
    return lane_numbers() == static_cast<std::int32_t>(tile.first + row - column) ? all(1) : Floats{};
  }
};

struct GivenColumn {
  const Tile& tile;
  template <class Lanes>
  Floats at(Index row, Index column, const Lanes& lanes) const {
    return lanes.load(tile.labels + row * tile.label_stride + column);
  }
};

// state [kNumbers, columns], as gather_row's numbers; peaks begin at kLowest, sums at 0.
template <bool kSharpened, class Labels>
inline void gather_columns(const float* z, const Tile& tile, const Labels& labels, Index begin, Index end,
                           double* state) {
  constexpr Index kRows = 8;  // that are summed in float
  alignas(64) float peak[ptmst::kColumns], sharp_peak[ptmst::kColumns];
  alignas(64) double totals[3][ptmst::kColumns] = {};
  const Index columns = tile.columns;
  for (Index j = begin; j < end; ++j) {
    peak[j - begin] = static_cast<float>(state[j]);
    sharp_peak[j - begin] = static_cast<float>(state[columns + j]);
  }
  for (Index i = 0; i < tile.rows; ++i) {
    registers(begin, end, [&](Index j, auto lanes) {
      const Index k = j - begin;
      lanes.store(peak + k, largest(lanes.load(peak + k), lanes.load(z + i * columns + j)));
      if constexpr (kSharpened)
        lanes.store(sharp_peak + k, largest(lanes.load(sharp_peak + k), kSharp * labels.at(i, j, lanes)));
    });
  }
  for (Index first = 0; first < tile.rows; first += kRows) {
    const Index last = first + kRows < tile.rows ? first + kRows : tile.rows;
    registers(begin, end, [&](Index j, auto lanes) {
      const Index k = j - begin;
      const Floats top = lanes.load(peak + k), sharp_top = lanes.load(sharp_peak + k);
      Floats sums[3] = {};
      for (Index i = first; i < last; ++i) {
        Floats found[3];
        gather<kSharpened>(lanes.load(z + i * columns + j), labels.at(i, j, lanes), top, sharp_top, found);
        for (int n = 0; n < 3; ++n) sums[n] += found[n];
      }
      for (int n = 0; n < 3; ++n) lanes.add(totals[n] + k, sums[n]);
    });
  }
  for (Index j = begin; j < end; ++j) {
    const Index k = j - begin;
    double *const numbers = state + j, fall = numbers[0] - static_cast<double>(peak[k]);
    const double sharp_fall = numbers[columns] - static_cast<double>(sharp_peak[k]);
    const double shrunk = factor(fall), sharp_shrunk = kSharpened ? factor(sharp_fall) : 1;
    // The third sum is of differences to the peaks.
    const double third = numbers[4 * columns] + numbers[3 * columns] * (kSharpened ? sharp_fall - fall : fall);
    numbers[0] = static_cast<double>(peak[k]);
    numbers[columns] = static_cast<double>(sharp_peak[k]);
    numbers[2 * columns] = numbers[2 * columns] * shrunk + totals[0][k];
    numbers[3 * columns] = numbers[3 * columns] * sharp_shrunk + totals[1][k];
    numbers[4 * columns] = third * sharp_shrunk + totals[2][k];
  }
}

void column_numbers(Kind kind, const float* z, const Tile& tile, Index begin, Index end, double* state) {
  const auto gathered = [&](const auto& labels) {
    kind == ptmst::kDivergence ? gather_columns<true>(z, tile, labels, begin, end, state)
                               : gather_columns<false>(z, tile, labels, begin, end, state);
  };
  tile.labels ? gathered(GivenColumn{tile}) : gathered(OwnColumn{tile});
}

// Of each row or column five numbers: m = max z and the weight a / Σ exp(z − m) of its softmax, so that a p is
// exp(z − m) times that, and
//   linear losses: weight u of S and offset v:     ∂ℓ/∂z = (a p − u S)/2    ∂ℓ/∂S = −u (z − v)/2
//   KL: m′ = max x, x = 10 S, a / Σ exp(x − m′), v: ∂ℓ/∂z = a (p − q)/2      ∂ℓ/∂S = 5 a q (x − z − v)
// with p and q the softmaxes of z and of x; rows and columns add up.
template <bool kSharpened>
inline void softmax_row(float* z, float* d_labels, const Tile& tile, Index row, const float* of_row,
                        const float* of_columns, double* sums) {
  float* const logits = z + row * tile.columns;
  const Index columns = tile.columns;
  const Floats r0 = all(of_row[0]), r1 = all(of_row[1]), r2 = all(of_row[2]), r3 = all(of_row[3]), r4 = all(of_row[4]);
  pieces(tile, row, 0, columns, [&](auto labels, Index from, Index to) {
    runs(from, to, [&](Index begin, Index end) {
      Floats along{}, slopes{};
      registers(begin, end, [&](Index j, auto lanes) {
        const auto column = [&](Index n) { return lanes.load(of_columns + n * columns + j); };
        const Floats value = lanes.load(logits + j), s = labels.at(j, lanes), c2 = column(2), c3 = column(3);
        Floats slope = r1 * exponential(value - r0) + column(1) * exponential(value - column(0)), of_label;
        if constexpr (kSharpened) {
          const Floats x = kSharp * s, q = r3 * exponential(x - r2), t = c3 * exponential(x - c2);
          slope -= q + t;
          of_label = 5.0f * (q * (x - value - r4) + t * (x - value - column(4)));
        } else {
          slope -= s * (r2 + c2);
          of_label = -0.5f * (r2 * (value - r3) + c2 * (value - c3));
        }
        slope *= 0.5f;
        lanes.store(logits + j, slope);
        along += lanes.keep(slope * value, 0);
        slopes += lanes.keep(slope, 0);
        if (d_labels) lanes.store(d_labels + row * columns + j, of_label);
      });
      sums[0] += sum(along), sums[1] += sum(slopes);
    });
  });
}

void softmax(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* of_row,
             const float* of_columns, double* sums) {
  kind == ptmst::kDivergence ? softmax_row<true>(z, d_labels, tile, row, of_row, of_columns, sums)
                             : softmax_row<false>(z, d_labels, tile, row, of_row, of_columns, sums);
}

}  // namespace contrast
}  // namespace
