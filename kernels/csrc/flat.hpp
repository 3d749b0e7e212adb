// Kernels over a run of parameters of one layer or group. Plain torch rounds after each operation, and so do these
// (CMakeLists.txt forbids contraction): all implementations decode a shortcut's point to the same bits.
#pragma once

#include "kernels.hpp"
#include "lanes.hpp"

namespace {
namespace flat {

constexpr Index kRun = 2048;  // parameters that are summed in float before they are added in double

// The number of floats before the first one aligned to a register.
inline Index unaligned(const float* to, Index count) {
  const auto past = reinterpret_cast<std::uintptr_t>(to) % sizeof(Floats);
  const Index head = past % sizeof(float) ? count : static_cast<Index>((sizeof(Floats) - past) % sizeof(Floats) / 4);
  return head < count ? head : count;
}

template <bool kStream>
inline void point_of(float* out, const float* base, const std::uint16_t* displacement, float factor, Index count) {
  Index i = 0;
  const Index head = kStream ? unaligned(out, count) : 0;
  for (; i < head; ++i) out[i] = base[i] + factor * half(displacement[i]);
  for (; i + kWidth <= count; i += kWidth) {
    const Floats value = load(base + i) + factor * load_half(displacement + i);
    kStream ? stream(out + i, value) : store(out + i, value);
  }
  for (; i < count; ++i) out[i] = base[i] + factor * half(displacement[i]);
  if (kStream) finish_streams();
}

void point(float* out, const float* base, const std::uint16_t* displacement, float factor, Index count, bool stream) {
  stream ? point_of<true>(out, base, displacement, factor, count)
         : point_of<false>(out, base, displacement, factor, count);
}

// The start and target of a residual, and the number of its sums.
struct OnShortcut {
  static constexpr int kSums = 2;
  const float* base;
  const std::uint16_t* displacement;
  float from, to;
  void at(Index i, float& start, float& target) const {
    const float moved = half(displacement[i]);
    start = base[i] + from * moved, target = base[i] + to * moved;
  }
  void at(Index i, Floats& start, Floats& target) const {
    const Floats moved = load_half(displacement + i), origin = load(base + i);
    start = origin + from * moved, target = origin + to * moved;
  }
};

struct BetweenVectors {
  static constexpr int kSums = 3;
  const float *starts, *targets;
  void at(Index i, float& start, float& target) const { start = starts[i], target = targets[i]; }
  void at(Index i, Floats& start, Floats& target) const { start = load(starts + i), target = load(targets + i); }
};

template <bool kStream, class Span>
inline void match(float* residual, const float* theta, const Span& span, Index count, double* sums) {
  const auto one = [&](Index i) {
    float start, target;
    span.at(i, start, target);
    const float r = residual[i] = theta[i] - target;
    sums[0] += static_cast<double>(r) * static_cast<double>(r);
    sums[1] += static_cast<double>(r) * static_cast<double>(theta[i] - start);
    if constexpr (Span::kSums > 2) {
      const double d = static_cast<double>(target - start);
      sums[2] += d * d;
    }
  };
  Index i = 0;
  const Index head = kStream ? unaligned(residual, count) : 0;
  for (; i < head; ++i) one(i);
  while (i + kWidth <= count) {
    const Index end = i + kRun < count ? i + kRun : count;
    Floats squared{}, progress{}, distance{};
    for (; i + kWidth <= end; i += kWidth) {
      Floats start, target;
      span.at(i, start, target);
      const Floats t = load(theta + i), r = t - target;
      kStream ? stream(residual + i, r) : store(residual + i, r);
      squared += r * r;
      progress += r * (t - start);
      if constexpr (Span::kSums > 2) distance += (target - start) * (target - start);
    }
    sums[0] += sum(squared);
    sums[1] += sum(progress);
    if constexpr (Span::kSums > 2) sums[2] += sum(distance);
  }
  for (; i < count; ++i) one(i);
  if (kStream) finish_streams();
}

void match_shortcut(float* residual, const float* theta, const float* base, const std::uint16_t* displacement,
                    float from, float to, Index count, bool stream, double* sums) {
  const OnShortcut span{base, displacement, from, to};
  stream ? match<true>(residual, theta, span, count, sums) : match<false>(residual, theta, span, count, sums);
}

void match_vectors(float* residual, const float* theta, const float* start, const float* target, Index count,
                   bool stream, double* sums) {
  const BetweenVectors span{start, target};
  stream ? match<true>(residual, theta, span, count, sums) : match<false>(residual, theta, span, count, sums);
}

void descend(float* theta, const float* grad, float rate, Index count) {
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) store(theta + i, load(theta + i) - rate * load(grad + i));
  for (; i < count; ++i) theta[i] = theta[i] - rate * grad[i];
}

// As torch's lerp: from the nearer end.
template <class Number>
inline Number between(Number a, Number b, float weight) {
  return weight < 0.5f ? a + weight * (b - a) : b - (b - a) * (1.0f - weight);
}

void sgd_ema(float* param, const float* grad, float* buffer, float* ema, float rate, float momentum, float weight,
             Index count) {
  Index i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const Floats m = load(buffer + i) * momentum + load(grad + i);
    const Floats p = load(param + i) - rate * m;
    store(buffer + i, m);
    store(param + i, p);
    store(ema + i, between(load(ema + i), p, weight));
  }
  for (; i < count; ++i) {
    buffer[i] = buffer[i] * momentum + grad[i];
    param[i] = param[i] - rate * buffer[i];
    ema[i] = between(ema[i], param[i], weight);
  }
}

}  // namespace flat
}  // namespace
