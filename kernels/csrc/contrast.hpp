// Tiles of the soft-label contrastive losses: value and gradient from logits z and soft labels S (docs/method.md §1).
//
// Losses that are sums over pairs (wbce, bce, mse, siglip) take one pass over a tile. Those with a softmax take two:
// `softmax_stats_row` and `softmax_stats_columns` compute statistics of whole rows and columns, and `softmax_gradient`
// the gradient from the coefficients that follow from them (python/kernels/steps.py).
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace {
namespace contrast {

using ptmst::Kind;
using ptmst::Tile;

// As in python/kernels/reference.py and steps.py.
constexpr float kEps = 1e-6f, kSharpness = 10.0f, kLogFloor = -100.0f, kLowest = -3.4e38f;
constexpr Index kRun = 2048;  // pairs of a row that are summed in float before they are added in double

// Soft labels along a row: those of the tile, or of the identity, where all but one are 0.
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

// body(labels, begin, end) over columns [begin, end) of a row, in pieces with labels of one type.
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
  Floats loss, slope, of_label;  // ℓ, ∂ℓ/∂z, ∂ℓ/∂S, without the weight
};

// With σ = 1 / (1 + exp(−z)):
//          ℓ                                       ∂ℓ/∂z                                ∂ℓ/∂S
// wbce     −S log(σ + ε) − (1−S) log(1 − σ + ε)    σ(1−σ) ((1−S)/(1−σ+ε) − S/(σ+ε))     log(1−σ+ε) − log(σ+ε)
// siglip   −S log σ − (1−S) log(1 − σ)             σ − S                                log(1−σ) − log σ
// bce      as siglip, with logarithms clamped at kLogFloor, where they have no gradient
// mse      (σ − S)²                                2 (σ − S) σ (1 − σ)                  −2 (σ − S)
template <Kind kKind>
inline Pair pair(Floats z, Floats s) {
  const Floats magnitude = z < 0.0f ? -z : z, e = exponential(-magnitude);
  const Floats near = 1.0f / (1.0f + e), far = e * near;  // σ(|z|), σ(−|z|)
  const Floats positive = z < 0.0f ? far : near, negative = z < 0.0f ? near : far;  // σ, 1 − σ
  if constexpr (kKind == ptmst::kWbce) {
    const Floats log_positive = logarithm(positive + kEps), log_negative = logarithm(negative + kEps);
    const Floats both = positive * negative;
    return {-s * log_positive - (1.0f - s) * log_negative,
            both * ((1.0f - s) / (negative + kEps) - s / (positive + kEps)), log_negative - log_positive};
  } else if constexpr (kKind == ptmst::kMse) {
    const Floats off = positive - s;
    return {off * off, 2.0f * off * positive * negative, -2.0f * off};
  } else {
    const Floats tail = logarithm_1p(e);
    Floats log_positive = smallest(z, Floats{}) - tail, log_negative = smallest(-z, Floats{}) - tail;
    if constexpr (kKind == ptmst::kSiglip)
      return {-s * log_positive - (1.0f - s) * log_negative, positive - s, log_negative - log_positive};
    const Floats slope = (log_negative > kLogFloor ? (1.0f - s) * positive : Floats{}) -
                         (log_positive > kLogFloor ? s * negative : Floats{});
    log_positive = largest(log_positive, all(kLogFloor)), log_negative = largest(log_negative, all(kLogFloor));
    return {-s * log_positive - (1.0f - s) * log_negative, slope, log_negative - log_positive};
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
        const Pair one = pair<kKind>(value, s);
        const Floats weight = s > 0.5f ? all(weights[0]) : all(weights[1]), loss = lanes.keep(one.loss, 0);
        positive += s > 0.5f ? loss : Floats{};
        negative += s > 0.5f ? Floats{} : loss;
        if (!differentiate) return;
        const Floats slope = weight * one.slope;
        lanes.store(logits + j, slope);
        along += lanes.keep(slope * value, 0);
        slopes += lanes.keep(slope, 0);
        if (d_labels) lanes.store(d_labels + row * tile.columns + j, weight * one.of_label);
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

// The terms of the three sums, given the maxima m and m′; with x = kSharpness · S:
//           kExpSum        kLabelSum       kCrossSum
// linear    exp(z − m)     S               S (z − m)
// kl        exp(z − m)     exp(x − m′)     exp(x − m′) ((x − m′) − (z − m))
template <bool kSharpened>
inline void sum_terms(Floats z, Floats s, Floats logit_max, Floats label_max, Floats* terms) {
  const Floats below = z - logit_max;
  terms[0] = exponential(below);
  if constexpr (kSharpened) {
    const Floats label_below = kSharpness * s - label_max;
    terms[1] = exponential(label_below);
    terms[2] = terms[1] * (label_below - below);
  } else {
    terms[1] = s;
    terms[2] = s * below;
  }
}

template <bool kSharpened>
inline void stats_of_row(const float* z, const Tile& tile, Index row, double* stats) {
  const float* const logits = z + row * tile.columns;
  Floats logit_maxima = all(kLowest), label_maxima = all(kLowest);
  pieces(tile, row, 0, tile.columns, [&](auto labels, Index begin, Index end) {
    registers(begin, end, [&](Index j, auto lanes) {
      logit_maxima = largest(logit_maxima, lanes.keep(lanes.load(logits + j), kLowest));
      if constexpr (kSharpened)
        label_maxima = largest(label_maxima, lanes.keep(kSharpness * labels.at(j, lanes), kLowest));
    });
  });
  const float logit_max = most(logit_maxima), label_max = kSharpened ? most(label_maxima) : 0.0f;
  stats[ptmst::kLogitMax] = static_cast<double>(logit_max), stats[ptmst::kLabelMax] = static_cast<double>(label_max);
  stats[ptmst::kExpSum] = stats[ptmst::kLabelSum] = stats[ptmst::kCrossSum] = 0;
  pieces(tile, row, 0, tile.columns, [&](auto labels, Index from, Index to) {
    runs(from, to, [&](Index begin, Index end) {
      Floats totals[3] = {};
      registers(begin, end, [&](Index j, auto lanes) {
        Floats terms[3];
        sum_terms<kSharpened>(lanes.load(logits + j), labels.at(j, lanes), all(logit_max), all(label_max), terms);
        for (int n = 0; n < 3; ++n) totals[n] += lanes.keep(terms[n], 0);
      });
      for (int n = 0; n < 3; ++n) stats[ptmst::kExpSum + n] += sum(totals[n]);
    });
  });
}

void softmax_stats_row(Kind kind, const float* z, const Tile& tile, Index row, double* stats) {
  kind == ptmst::kDivergence ? stats_of_row<true>(z, tile, row, stats) : stats_of_row<false>(z, tile, row, stats);
}

inline double factor(double f) { return static_cast<double>(exponential(all(static_cast<float>(f)))[0]); }

// Soft labels of a register of columns in one row.
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

// Adds a tile to stats [kNumStats, columns], whose maxima begin at kLowest and sums at 0. Sums relative to the maxima so
// far are rescaled to the larger ones: with f = m_old − m_new and g = m′_old − m′_new,
//           kExpSum          kLabelSum          kCrossSum
// linear    Σ exp(f) · …     Σ                  Σ + kLabelSum · f
// kl        Σ exp(f) · …     Σ exp(g) · …       (Σ + kLabelSum · (g − f)) exp(g)
template <bool kSharpened, class Labels>
inline void stats_of_columns(const float* z, const Tile& tile, const Labels& labels, Index begin, Index end,
                             double* stats) {
  constexpr Index kRows = 8;  // rows that are summed in float
  alignas(64) float logit_max[ptmst::kColumns], label_max[ptmst::kColumns];
  alignas(64) double totals[3][ptmst::kColumns] = {};
  const Index columns = tile.columns;
  for (Index j = begin; j < end; ++j) {
    logit_max[j - begin] = static_cast<float>(stats[ptmst::kLogitMax * columns + j]);
    label_max[j - begin] = static_cast<float>(stats[ptmst::kLabelMax * columns + j]);
  }
  for (Index i = 0; i < tile.rows; ++i) {
    registers(begin, end, [&](Index j, auto lanes) {
      const Index k = j - begin;
      lanes.store(logit_max + k, largest(lanes.load(logit_max + k), lanes.load(z + i * columns + j)));
      if constexpr (kSharpened)
        lanes.store(label_max + k, largest(lanes.load(label_max + k), kSharpness * labels.at(i, j, lanes)));
    });
  }
  for (Index first = 0; first < tile.rows; first += kRows) {
    const Index last = first + kRows < tile.rows ? first + kRows : tile.rows;
    registers(begin, end, [&](Index j, auto lanes) {
      const Index k = j - begin;
      const Floats top = lanes.load(logit_max + k), label_top = lanes.load(label_max + k);
      Floats sums[3] = {};
      for (Index i = first; i < last; ++i) {
        Floats terms[3];
        sum_terms<kSharpened>(lanes.load(z + i * columns + j), labels.at(i, j, lanes), top, label_top, terms);
        for (int n = 0; n < 3; ++n) sums[n] += terms[n];
      }
      for (int n = 0; n < 3; ++n) lanes.add(totals[n] + k, sums[n]);
    });
  }
  for (Index j = begin; j < end; ++j) {
    const Index k = j - begin;
    const auto stat = [&](Index n) -> double& { return stats[n * columns + j]; };
    const double f = stat(ptmst::kLogitMax) - static_cast<double>(logit_max[k]);
    const double g = stat(ptmst::kLabelMax) - static_cast<double>(label_max[k]);
    const double exp_f = factor(f), exp_g = kSharpened ? factor(g) : 1;
    const double cross = stat(ptmst::kCrossSum) + stat(ptmst::kLabelSum) * (kSharpened ? g - f : f);
    stat(ptmst::kLogitMax) = static_cast<double>(logit_max[k]);
    stat(ptmst::kLabelMax) = static_cast<double>(label_max[k]);
    stat(ptmst::kExpSum) = stat(ptmst::kExpSum) * exp_f + totals[0][k];
    stat(ptmst::kLabelSum) = stat(ptmst::kLabelSum) * exp_g + totals[1][k];
    stat(ptmst::kCrossSum) = cross * exp_g + totals[2][k];
  }
}

void softmax_stats_columns(Kind kind, const float* z, const Tile& tile, Index begin, Index end, double* stats) {
  const auto with = [&](const auto& labels) {
    kind == ptmst::kDivergence ? stats_of_columns<true>(z, tile, labels, begin, end, stats)
                               : stats_of_columns<false>(z, tile, labels, begin, end, stats);
  };
  tile.labels ? with(GivenColumn{tile}) : with(OwnColumn{tile});
}

// The gradient of a pair is the sum of its row's and its column's; p and q are the softmaxes of z and of x:
//           ∂ℓ/∂z             ∂ℓ/∂S
// linear    (a p − u S)/2     −u (z − v)/2                    a p = kLogitScale exp(z − kLogitMax)
// kl        a (p − q)/2       kSharpness a q (x − z − v)/2    a q = kSharpScale exp(x − kSharpMax)
template <bool kSharpened>
inline void gradient_of_row(float* z, float* d_labels, const Tile& tile, Index row, const float* of_row,
                        const float* of_columns, double* sums) {
  float* const logits = z + row * tile.columns;
  const Index columns = tile.columns;
  // Read before the loops: stores to z might otherwise change them.
  const Floats row_max = all(of_row[ptmst::kLogitMax]), row_scale = all(of_row[ptmst::kLogitScale]);
  const Floats row_2 = all(of_row[2]), row_3 = all(of_row[3]), row_4 = all(of_row[4]);
  pieces(tile, row, 0, columns, [&](auto labels, Index from, Index to) {
    runs(from, to, [&](Index begin, Index end) {
      Floats along{}, slopes{};
      registers(begin, end, [&](Index j, auto lanes) {
        const auto column = [&](Index slot) { return lanes.load(of_columns + slot * columns + j); };
        const Floats value = lanes.load(logits + j), s = labels.at(j, lanes), column_2 = column(2), column_3 = column(3);
        Floats slope = row_scale * exponential(value - row_max) +
                       column(ptmst::kLogitScale) * exponential(value - column(ptmst::kLogitMax));
        Floats of_label;
        if constexpr (kSharpened) {
          // Slots kSharpMax, kSharpScale, kSharpOffset.
          const Floats x = kSharpness * s, row_q = row_3 * exponential(x - row_2);
          const Floats column_q = column_3 * exponential(x - column_2);
          slope -= row_q + column_q;
          of_label = 0.5f * kSharpness *
                     (row_q * (x - value - row_4) + column_q * (x - value - column(ptmst::kSharpOffset)));
        } else {
          // Slots kLabelWeight, kOffset.
          slope -= s * (row_2 + column_2);
          of_label = -0.5f * (row_2 * (value - row_3) + column_2 * (value - column_3));
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

void softmax_gradient(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* of_row,
                      const float* of_columns, double* sums) {
  kind == ptmst::kDivergence ? gradient_of_row<true>(z, d_labels, tile, row, of_row, of_columns, sums)
                             : gradient_of_row<false>(z, d_labels, tile, row, of_row, of_columns, sums);
}

}  // namespace contrast
}  // namespace
