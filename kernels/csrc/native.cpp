// The C ABI that ptmst.kernels.native calls: the choice of instruction set, and the work of each thread. No libtorch.
//
// Arrays are contiguous; callers have checked every shape. Work is cut into pieces that do not depend on the number of
// threads, and sums of pieces are added in order: the bits are the same for every number of threads.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

using ptmst::Index;
using ptmst::Kernels;
using ptmst::Kind;
using ptmst::Tile;

constexpr Index kPiece = 1 << 14;     // parameters per piece
constexpr Index kThread = 1 << 16;    // parameters below which starting a thread costs more than it saves
constexpr Index kPairs = 1 << 14;     // pairs of a tile, likewise
constexpr Index kCached = 1 << 21;    // parameters above which an output does not stay in the caches

bool supported(const char* name) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!std::strcmp(name, "avx2")) return avx2;
  if (!std::strcmp(name, "avx512"))
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return !std::strcmp(name, "portable");
}

const Kernels* best() {
#if defined(__x86_64__)
  if (supported("avx512")) return &ptmst::avx512;
  if (supported("avx2")) return &ptmst::avx2;
#endif
  return &ptmst::portable;
}

const Kernels* chosen = best();

// body(n) for n in [0, count), on at most `threads` threads.
template <class Body>
void share(Index count, Index threads, const Body& body) {
  const int team = static_cast<int>(std::clamp<Index>(threads, 1, std::max<Index>(count, 1)));
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (Index n = 0; n < count; ++n) body(n);
}

// body(piece, layer, begin, end) over the parameters [offsets[0], offsets[layers]); each call is within one layer.
template <class Body>
void by_layer(const Index* offsets, Index layers, Index threads, const Body& body) {
  const Index first = offsets[0], last = offsets[layers], count = last - first;
  share((count + kPiece - 1) / kPiece, std::min(threads, count / kThread), [&](Index piece) {
    Index begin = first + piece * kPiece;
    const Index end = std::min(last, begin + kPiece);
    Index layer = std::upper_bound(offsets, offsets + layers + 1, begin) - offsets - 1;
    for (; begin < end; ++layer) {
      const Index until = std::min(end, offsets[layer + 1]);
      if (begin < until) body(piece, layer, begin, until);
      begin = std::max(begin, until);
    }
  });
}

Index pieces(const Index* offsets, Index layers) { return (offsets[layers] - offsets[0] + kPiece - 1) / kPiece; }

// sums [quantities, groups]: the sums of pieces, added in order.
void add_up(const std::vector<double>& partial, Index pieces, Index groups, int quantities, float* const* sums) {
  for (int q = 0; q < quantities; ++q) {
    for (Index g = 0; g < groups; ++g) {
      double total = 0;
      for (Index p = 0; p < pieces; ++p) total += partial[static_cast<std::size_t>((p * groups + g) * 3 + q)];
      sums[q][g] = static_cast<float>(total);
    }
  }
}

}  // namespace

extern "C" {

const char* ptmst_instructions() { return chosen->name; }

// Use this instruction set, or the "best" one; 0 where the machine lacks it.
int ptmst_choose(const char* name) {
  if (!std::strcmp(name, "best")) chosen = best();
  if (!supported(name)) return !std::strcmp(name, "best");
  chosen = &ptmst::portable;
#if defined(__x86_64__)
  if (!std::strcmp(name, "avx2")) chosen = &ptmst::avx2;
  if (!std::strcmp(name, "avx512")) chosen = &ptmst::avx512;
#endif
  return 1;
}

// theta [P] = base [P] + beta_ℓ · scale_ℓ · displacement [P] (half), layer ℓ at [offsets[ℓ], offsets[ℓ+1]).
void ptmst_shortcut_point(float* theta, const float* base, const std::uint16_t* displacement, const float* scale,
                          const float* beta, const Index* offsets, Index layers, Index threads) {
  const bool stream = offsets[layers] - offsets[0] > kCached;
  by_layer(offsets, layers, threads, [&](Index, Index layer, Index begin, Index end) {
    chosen->point(theta + begin, base + begin, displacement + begin, beta[layer] * scale[layer], end - begin, stream);
  });
}

// residual [P]; squared, progress [groups].
void ptmst_match_shortcut(float* residual, float* squared, float* progress, const float* theta, const float* base,
                          const std::uint16_t* displacement, const float* scale, const float* beta_start,
                          const float* beta_target, const Index* offsets, const Index* group_of_layer, Index layers,
                          Index groups, Index threads) {
  const bool stream = offsets[layers] - offsets[0] > kCached;
  const Index count = pieces(offsets, layers);
  std::vector<double> partial(static_cast<std::size_t>(3 * count * groups));
  by_layer(offsets, layers, threads, [&](Index piece, Index layer, Index begin, Index end) {
    double* sums = &partial[static_cast<std::size_t>(3 * (piece * groups + group_of_layer[layer]))];
    chosen->match_shortcut(residual + begin, theta + begin, base + begin, displacement + begin,
                           beta_start[layer] * scale[layer], beta_target[layer] * scale[layer], end - begin, stream,
                           sums);
  });
  float* const sums[] = {squared, progress};
  add_up(partial, count, groups, 2, sums);
}

// The same between plain vectors. distance [groups]: ‖target − start‖²; group g is at [offsets[g], offsets[g+1]).
void ptmst_match_vectors(float* residual, float* squared, float* progress, float* distance, const float* theta,
                         const float* start, const float* target, const Index* offsets, Index groups, Index threads) {
  const bool stream = offsets[groups] - offsets[0] > kCached;
  const Index count = pieces(offsets, groups);
  std::vector<double> partial(static_cast<std::size_t>(3 * count * groups));
  by_layer(offsets, groups, threads, [&](Index piece, Index group, Index begin, Index end) {
    double* sums = &partial[static_cast<std::size_t>(3 * (piece * groups + group))];
    chosen->match_vectors(residual + begin, theta + begin, start + begin, target + begin, end - begin, stream, sums);
  });
  float* const sums[] = {squared, progress, distance};
  add_up(partial, count, groups, 3, sums);
}

// theta −= lr_g · grad, group g at [offsets[g], offsets[g+1]).
void ptmst_flat_sgd(float* theta, const float* grad, const float* lr, const Index* offsets, Index groups, Index threads) {
  by_layer(offsets, groups, threads, [&](Index, Index group, Index begin, Index end) {
    chosen->descend(theta + begin, grad + begin, lr[group], end - begin);
  });
}

void ptmst_sgd_ema(float* param, const float* grad, float* buffer, float* ema, float rate, float momentum,
                   float weight, Index count, Index threads) {
  const Index offsets[] = {0, count};
  by_layer(offsets, 1, threads, [&](Index, Index, Index begin, Index end) {
    chosen->sgd_ema(param + begin, grad + begin, buffer + begin, ema + begin, rate, momentum, weight, end - begin);
  });
}

// sums [4]; see Kernels::pairwise.
void ptmst_pairwise(Index kind, float* z, const float* labels, float* d_labels, Index rows, Index columns,
                    Index label_stride, Index first, const float* weights, Index differentiate, double* sums,
                    Index threads) {
  const Tile tile{rows, columns, labels, label_stride, first};
  std::vector<double> partial(static_cast<std::size_t>(4 * rows));
  share(rows, std::min(threads, rows * columns / kPairs), [&](Index row) {
    chosen->pairwise(static_cast<Kind>(kind), z, d_labels, tile, row, weights, differentiate != 0,
                     &partial[static_cast<std::size_t>(4 * row)]);
  });
  for (std::size_t n = 0; n < partial.size(); ++n) sums[n % 4] += partial[n];
}

// of_rows [rows, 5], of_columns [5, columns]; see Kernels::softmax_stats_row and softmax_stats_columns.
void ptmst_softmax_stats(Index kind, const float* z, const float* labels, Index rows, Index columns, Index label_stride,
                         Index first, double* of_rows, double* of_columns, Index threads) {
  const Tile tile{rows, columns, labels, label_stride, first};
  const Index team = std::min(threads, rows * columns / kPairs);
  share(rows, team, [&](Index row) {
    chosen->softmax_stats_row(static_cast<Kind>(kind), z, tile, row, of_rows + ptmst::kNumStats * row);
  });
  share((columns + ptmst::kColumns - 1) / ptmst::kColumns, team, [&](Index block) {
    const Index begin = block * ptmst::kColumns, end = std::min(columns, begin + ptmst::kColumns);
    chosen->softmax_stats_columns(static_cast<Kind>(kind), z, tile, begin, end, of_columns);
  });
}

// of_rows [rows, 5], of_columns [5, columns]; sums [2]; see Kernels::softmax_gradient.
void ptmst_softmax_gradient(Index kind, float* z, const float* labels, float* d_labels, Index rows, Index columns,
                            Index label_stride, Index first, const float* of_rows, const float* of_columns,
                            double* sums, Index threads) {
  const Tile tile{rows, columns, labels, label_stride, first};
  std::vector<double> partial(static_cast<std::size_t>(2 * rows));
  share(rows, std::min(threads, rows * columns / kPairs), [&](Index row) {
    chosen->softmax_gradient(static_cast<Kind>(kind), z, d_labels, tile, row, of_rows + ptmst::kNumStats * row,
                             of_columns, &partial[static_cast<std::size_t>(2 * row)]);
  });
  for (std::size_t n = 0; n < partial.size(); ++n) sums[n % 2] += partial[n];
}

}  // extern "C"
