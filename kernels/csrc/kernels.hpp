// What one instruction set offers: kernels over a run of parameters, or over rows of a tile. No threads here.
#pragma once

#include <cstdint>

namespace ptmst {

using Index = std::int64_t;

// A tile of logits: rows [begin, end) of image rows × all text columns, and the soft labels that go with it.
struct Tile {
  Index rows, columns;
  const float* labels;  // [rows, columns]; none: S is the identity
  Index label_stride;   // between rows of `labels`
  Index first;          // the column that is row 0's own pair
};

enum Kind { kWbce, kBce, kMse, kSiglip, kLinear, kDivergence };

constexpr int kNumbers = 5;  // that a softmax loss keeps of each row and column (contrast.hpp)

struct Kernels {
  const char* name;
  // out = base + factor · half
  void (*point)(float* out, const float* base, const std::uint16_t* displacement, float factor, Index count,
                bool stream);
  // residual = theta − target, target = base + to · half;  sums += residual², residual · (theta − start)
  void (*match_shortcut)(float* residual, const float* theta, const float* base, const std::uint16_t* displacement,
                         float from, float to, Index count, bool stream, double* sums);
  // the same of plain vectors;  sums += residual², residual · (theta − start), (target − start)²
  void (*match_vectors)(float* residual, const float* theta, const float* start, const float* target, Index count,
                        bool stream, double* sums);
  // theta −= rate · grad
  void (*descend)(float* theta, const float* grad, float rate, Index count);
  // buffer = momentum · buffer + grad;  param −= rate · buffer;  ema → param by 1 − decay
  void (*sgd_ema)(float* param, const float* grad, float* buffer, float* ema, float rate, float momentum, float weight,
                  Index count);
  // One row of a loss that is a sum over pairs. z → ∂ℓ/∂z where `differentiate`; sums: ℓ of S > ½, ℓ of the rest,
  // Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z.
  void (*pairwise)(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* weights,
                   bool differentiate, double* sums);
  // Of one row of a softmax loss: log Σ exp z and what the loss needs of S (contrast.hpp).
  void (*row_numbers)(Kind kind, const float* z, const Tile& tile, Index row, double* numbers);
  // Of columns [begin, end), at most kColumns: the same, carried on from tile to tile.
  void (*column_numbers)(Kind kind, const float* z, const Tile& tile, Index begin, Index end, double* state);
  // One row of a softmax loss's gradient: z → ∂ℓ/∂z; sums: Σ z ∂ℓ/∂z, Σ ∂ℓ/∂z.
  void (*softmax)(Kind kind, float* z, float* d_labels, const Tile& tile, Index row, const float* row_numbers,
                  const float* column_numbers, double* sums);
};

constexpr Index kColumns = 256;  // of a tile that are walked together

extern const Kernels portable;
#if defined(__x86_64__)
extern const Kernels avx2, avx512;
#endif

}  // namespace ptmst
