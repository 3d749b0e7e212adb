// The kernels of one instruction set, over a run of parameters or over rows of a tile. Threads are in native.cpp.
#pragma once

#include <cstdint>

namespace ptmst {

using Index = std::int64_t;

// A tile of logits, a block of images × all texts, with its soft labels.
struct Tile {
  Index rows, columns;
  const float* labels;  // [rows, columns]; null: S is the identity
  Index label_stride;   // between rows of `labels`
  Index first;          // the column that is the pair of row 0
};

enum Kind { kWbce, kBce, kMse, kSiglip, kLinear, kDivergence };

// Of each row and each column of a softmax loss: statistics, and the coefficients of the gradient. The table in
// python/kernels/steps.py defines them; its slots are these.
enum Stat { kLogitMax, kLabelMax, kExpSum, kLabelSum, kCrossSum, kNumStats };
enum Linear { kLogitScale = 1, kLabelWeight, kOffset };
enum Sharpened { kSharpMax = 2, kSharpScale, kSharpOffset };

struct Kernels {
  const char* name;
  // out = base + factor · half
  void (*point)(float* out, const float* base, const std::uint16_t* displacement, float factor, Index count,
                bool stream);
  // residual = theta − target, target = base + to · half;  sums += residual², residual · (theta − start)
  void (*match_shortcut)(float* residual, const float* theta, const float* base, const std::uint16_t* displacement,
                         float from, float to, Index count, bool stream, double* sums);
  // the same with plain vectors;  sums += residual², residual · (theta − start), (target − start)²
  void (*match_vectors)(float* residual, const float* theta, const float* start, const float* target, Index count,
                        bool stream, double* sums);
  // theta −= rate · grad
  void (*descend)(float* theta, const float* grad, float rate, Index count);
  // buffer = momentum · buffer + grad;  param −= rate · buffer;  ema += weight · (param − ema)
  void (*sgd_ema)(float* param, const float* grad, float* buffer, float* ema, float rate, float momentum, float weight,
                  Index count);
  // One row of a loss that is a sum over pairs. With `differentiate`, z becomes ∂ℓ/∂z. weights: of pairs with S > ½, of
  // the others. sums [4]: ℓ without weights of either, Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z.
  void (*pairwise)(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* weights,
                   bool differentiate, double* sums);
  // The statistics of one row of a softmax loss: stats [kNumStats].
  void (*softmax_stats_row)(Kind kind, const float* z, const Tile& tile, Index row, double* stats);
  // Those of columns [begin, end), at most kColumns, updated from tile to tile: stats [kNumStats, columns].
  void (*softmax_stats_columns)(Kind kind, const float* z, const Tile& tile, Index begin, Index end, double* stats);
  // The gradient of one row of a softmax loss, from coefficients of_row [kNumStats] and of_columns [kNumStats, columns].
  // z becomes ∂ℓ/∂z; sums [2]: Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z.
  void (*softmax_gradient)(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* of_row,
                           const float* of_columns, double* sums);
};

constexpr Index kColumns = 256;  // columns of a tile per piece of work

extern const Kernels portable;
#if defined(__x86_64__)
extern const Kernels avx2, avx512;
#endif

}  // namespace ptmst
