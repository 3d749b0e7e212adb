// One register of floats, as wide as the instruction set being compiled for, and its arithmetic.
//
// Included once per instruction set. Everything has internal linkage, and no inline function of the standard library is
// used: the linker keeps one copy of such a function, which might be of a set that the machine lacks.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef std::int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef double Doubles __attribute__((vector_size(8 * kWidth)));
typedef std::int64_t Index;

// The same bits as another type.
template <class To, class From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline Floats all(float value) { return Floats{} + value; }
inline Floats largest(Floats a, Floats b) { return a > b ? a : b; }
inline Floats smallest(Floats a, Floats b) { return a < b ? a : b; }
inline float larger(float a, float b) { return a > b ? a : b; }

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// Bypasses the caches, for what is not read again soon; `to` is aligned to a register.
inline void stream(float* to, Floats value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, as<__m512>(value));
#elif defined(__AVX2__)
  _mm256_stream_ps(to, as<__m256>(value));
#elif defined(__x86_64__)
  _mm_stream_ps(to, as<__m128>(value));
#else
  store(to, value);
#endif
}

inline void finish_streams() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

inline float half(std::uint16_t bits) {
#if defined(__aarch64__)
  return as<__fp16>(bits);
#else
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return as<float>(sign | 0x7f800000u | (magnitude << 13));       // infinity, NaN
  if (magnitude >= 0x0400u) return as<float>(sign | ((magnitude << 13) + (112u << 23)));  // exponent bias 15 → 127
  const float subnormal = static_cast<float>(magnitude) * 5.9604644775390625e-8f;           // a multiple of 2⁻²⁴
  return as<float>(sign | as<std::uint32_t>(subnormal));
#endif
}

inline Floats load_half(const std::uint16_t* from) {
#if defined(__AVX512F__)
  // With a mask, since GCC 12 warns of an undefined operand inside the plain intrinsic.
  return as<Floats>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
  return as<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  return as<Floats>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
#else
  Floats value;
  for (int lane = 0; lane < kWidth; ++lane) value[lane] = half(from[lane]);
  return value;
#endif
}

inline double sum(Floats value) {
  double total = 0;
  for (int lane = 0; lane < kWidth; ++lane) total += static_cast<double>(value[lane]);
  return total;
}

inline float most(Floats value) {
  float result = value[0];
  for (int lane = 1; lane < kWidth; ++lane) result = larger(result, value[lane]);
  return result;
}

inline Ints lane_numbers() {
  Ints number{};
  for (int lane = 0; lane < kWidth; ++lane) number[lane] = lane;
  return number;
}

// A whole register, and the first part of one, for the remainder at the end of a row.
struct Whole {
  Floats load(const float* from) const { return ::load(from); }
  void store(float* to, Floats value) const { ::store(to, value); }
  Floats keep(Floats value, float) const { return value; }
  void add(double* to, Floats value) const {
    Doubles total;
    std::memcpy(&total, to, sizeof total);
    total += __builtin_convertvector(value, Doubles);
    std::memcpy(to, &total, sizeof total);
  }
};

struct Part {
  int count;
  Floats load(const float* from) const {
    Floats value{};
    std::memcpy(&value, from, sizeof(float) * static_cast<unsigned>(count));
    return value;
  }
  void store(float* to, Floats value) const { std::memcpy(to, &value, sizeof(float) * static_cast<unsigned>(count)); }
  // Valid lanes of the value; `otherwise` in the others.
  Floats keep(Floats value, float otherwise) const { return lane_numbers() < count ? value : all(otherwise); }
  void add(double* to, Floats value) const {
    for (int lane = 0; lane < count; ++lane) to[lane] += static_cast<double>(value[lane]);
  }
};

template <class Body>
inline void registers(Index begin, Index end, const Body& body) {
  for (; begin + kWidth <= end; begin += kWidth) body(begin, Whole{});
  if (begin < end) body(begin, Part{static_cast<int>(end - begin)});
}

// eˣ, to within 2 units in the last place; 0 below −87.3, and no infinity above 88.
inline Floats exponential(Floats x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
  const Floats inside = smallest(largest(x, all(-87.33654f)), all(88.0f));
  const Floats n = (inside * 1.44269504088896341f + kRound) - kRound;
  const Floats r = (inside - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  Floats p = all(1.9841270e-4f);                                       // Taylor's series: |r| ≤ ln 2 / 2
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  const Floats power = as<Floats>((__builtin_convertvector(n, Ints) + 127) << 23);
  return x < -87.33654f ? Floats{} : ((p * r) * r + r + 1.0f) * power;
}

// log x of a positive, normal x, to within 2 units in the last place.
inline Floats logarithm(Floats x) {
  // The mantissa lies in [√½, √2), so that the series is about 1 from both sides.
  const Ints shifted = as<Ints>(x) - 0x3f3504f3;
  const Floats m = as<Floats>((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  const Floats n = __builtin_convertvector(shifted >> 23, Floats);
  const Floats s = m / (m + 2.0f), t = s * s;  // log(1 + m) = 2 (s + s³/3 + s⁵/5 + …)
  Floats p = all(2.0f / 11);
  p = p * t + 2.0f / 9;
  p = p * t + 2.0f / 7;
  p = p * t + 2.0f / 5;
  p = p * t + 2.0f / 3;
  const Floats log_m = m - s * (m - p * t);
  return n * 0.693359375f + (n * -2.12194440e-4f + log_m);
}

// log(1 + u) for 0 ≤ u ≤ 1, corrected for the rounding of 1 + u.
inline Floats logarithm_1p(Floats u) {
  const Floats w = u + 1.0f;
  return logarithm(w) + (u - (w - 1.0f)) / w;
}

}  // namespace
