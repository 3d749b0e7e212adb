// The native kernels: C++17 behind a C ABI, no libtorch. Pointers are contiguous; callers have checked every shape.
//
// Each worker takes a fixed slice of the parameters, so the bits do not depend on the number of threads. The build
// forbids contracting a·b + c (see CMakeLists.txt): the plain torch definition rounds twice, and so does this.

#include <algorithm>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define PTMST_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define PTMST_NEON 1
#endif

namespace {

constexpr std::int64_t kSmallest = 1 << 16;  // parameters per thread below which starting a thread costs more

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t magnitude = half & 0x7fffu;
  std::uint32_t bits;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    bits = 0x7f800000u | (magnitude << 13);
  } else if (magnitude >= 0x0400u) {  // normal: exponent bias 15 → 127
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: a multiple of 2⁻²⁴, exact in float
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    std::memcpy(&bits, &value, sizeof bits);
  }
  bits |= sign;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// out[i] = base[i] + factor · half[i]
using Axpy = void (*)(float* out, const float* base, const std::uint16_t* half, float factor, std::int64_t count);

void axpy_plain(float* out, const float* base, const std::uint16_t* half, float factor, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = base[i] + factor * half_to_float(half[i]);
}

#ifdef PTMST_X86
__attribute__((target("avx2,f16c"))) void axpy_avx2(float* out, const float* base, const std::uint16_t* half,
                                                    float factor, std::int64_t count) {
  const __m256 factors = _mm256_set1_ps(factor);
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256 moved = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i)));
    _mm256_storeu_ps(out + i, _mm256_add_ps(_mm256_loadu_ps(base + i), _mm256_mul_ps(factors, moved)));
  }
  axpy_plain(out + i, base + i, half + i, factor, count - i);
}
#endif

#ifdef PTMST_NEON
void axpy_neon(float* out, const float* base, const std::uint16_t* half, float factor, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const float32x4_t moved = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + i)));
    vst1q_f32(out + i, vaddq_f32(vld1q_f32(base + i), vmulq_n_f32(moved, factor)));
  }
  axpy_plain(out + i, base + i, half + i, factor, count - i);
}
#endif

struct Choice {
  Axpy axpy;
  const char* name;
};

Choice choose() {
#ifdef PTMST_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) return {axpy_avx2, "AVX2 + F16C"};
#endif
#ifdef PTMST_NEON
  return {axpy_neon, "NEON"};
#endif
  return {axpy_plain, "portable"};
}

const Choice kChoice = choose();

void slice(float* theta, const float* base, const std::uint16_t* displacement, const float* scale, const float* beta,
           const std::int64_t* offsets, std::int64_t layers, std::int64_t first, std::int64_t last) {
  std::int64_t layer = std::upper_bound(offsets, offsets + layers + 1, first) - offsets - 1;
  while (first < last) {
    const std::int64_t end = std::min(last, offsets[layer + 1]);
    if (end > first) {
      kChoice.axpy(theta + first, base + first, displacement + first, beta[layer] * scale[layer], end - first);
      first = end;
    }
    ++layer;
  }
}

}  // namespace

extern "C" {

const char* ptmst_instructions() { return kChoice.name; }

// theta [P] = base [P] + beta_ℓ · scale_ℓ · displacement [P] (half), layer ℓ at [offsets[ℓ], offsets[ℓ+1]).
void ptmst_shortcut_point(float* theta, const float* base, const std::uint16_t* displacement, const float* scale,
                          const float* beta, const std::int64_t* offsets, std::int64_t layers, int threads) {
  const std::int64_t parameters = offsets[layers];
  const std::int64_t workers = std::clamp<std::int64_t>(parameters / kSmallest, 1, std::max(threads, 1));
#pragma omp parallel for num_threads(static_cast<int>(workers)) schedule(static, 1) if (workers > 1)
  for (std::int64_t worker = 0; worker < workers; ++worker) {
    slice(theta, base, displacement, scale, beta, offsets, layers, parameters * worker / workers,
          parameters * (worker + 1) / workers);
  }
}

}  // extern "C"
