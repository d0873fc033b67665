// Vectors of lanes: as many float, double or int64 as one register holds, by GCC's vector extension.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <cmath>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#if defined(EP_BYTES)  // wider than the machine's registers: the logic of long vectors can be tested without them
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define EP_BYTES 64
#elif defined(__AVX2__)
#define EP_BYTES 32
#else
#define EP_BYTES 16
#endif
#if EP_BYTES == 64 && defined(__AVX512F__)
#define EP_512 1
#elif EP_BYTES == 32 && defined(__AVX2__)
#define EP_256 1
#elif EP_BYTES == 16 && defined(__SSE2__)
#define EP_128 1
#endif

#define EP_INLINE inline __attribute__((always_inline))

namespace everypool {

typedef float vf __attribute__((vector_size(EP_BYTES)));
typedef double vd __attribute__((vector_size(EP_BYTES)));
typedef int32_t vi __attribute__((vector_size(EP_BYTES)));
typedef uint32_t vu __attribute__((vector_size(EP_BYTES)));
typedef int64_t vl __attribute__((vector_size(EP_BYTES)));

constexpr int LF = EP_BYTES / 4, LD = EP_BYTES / 8;

template <class V, class T> EP_INLINE V splat(T value) { return V{} + static_cast<std::remove_reference_t<decltype(V{}[0])>>(value); }
template <class V> EP_INLINE V loadu(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class V> EP_INLINE void storeu(void* p, V v) { std::memcpy(p, &v, sizeof v); }

template <class V, class M> EP_INLINE V pick(M mask, V yes, V no) { return mask ? yes : no; }
template <class V, class M> EP_INLINE V keep(V v, M mask) { return (V)((M)v & mask); }  // v where the mask is set, else 0

EP_INLINE bool any(vi mask) {
#if EP_512
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif EP_256
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  vl m = (vl)mask;
  int64_t found = 0;
  for (int i = 0; i < LD; ++i) found |= m[i];
  return found != 0;
#endif
}
EP_INLINE bool any(vl mask) { return any((vi)mask); }

// The larger; where either is NaN, the second.
EP_INLINE vf largest(vf a, vf b) {
#if EP_512
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif EP_256
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif EP_128
  return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
EP_INLINE vd largest(vd a, vd b) {
#if EP_512
  return (vd)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif EP_256
  return (vd)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif EP_128
  return (vd)_mm_max_pd((__m128d)a, (__m128d)b);
#else
  return a > b ? a : b;
#endif
}
EP_INLINE vl largest(vl a, vl b) { return a > b ? a : b; }
EP_INLINE vi unordered(vf a, vf b) {  // either is NaN
#if EP_256
  return (vi)_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q);
#elif EP_128
  return (vi)_mm_cmpunord_ps((__m128)a, (__m128)b);
#else
  return (vi)(a != a) | (vi)(b != b);
#endif
}

// LF bytes to and from lanes, where the compiler would go element by element
EP_INLINE vi from_bytes(const uint8_t* p) {
#if EP_512
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif EP_256
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#elif EP_128
  int32_t four;
  std::memcpy(&four, p, 4);
  const __m128i zero = _mm_setzero_si128();
  return (vi)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero), zero);
#else
  typedef uint8_t Bytes __attribute__((vector_size(LF)));
  return __builtin_convertvector(loadu<Bytes>(p), vi);
#endif
}
EP_INLINE void to_bytes(uint8_t* p, vi v) {
#if EP_512
  _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif EP_256
  const __m256i low = (__m256i)(v & 255);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64((__m128i*)p, _mm_packus_epi16(words, words));
#elif EP_128
  const __m128i words = _mm_packs_epi32((__m128i)(v & 255), _mm_setzero_si128());
  const int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  std::memcpy(p, &four, 4);
#else
  typedef uint8_t Bytes __attribute__((vector_size(LF)));
  storeu(p, __builtin_convertvector(v, Bytes));
#endif
}

EP_INLINE vf root(vf a) {
#if EP_512
  return (vf)_mm512_sqrt_ps((__m512)a);
#elif EP_256
  return (vf)_mm256_sqrt_ps((__m256)a);
#elif EP_128
  return (vf)_mm_sqrt_ps((__m128)a);
#else
  vf r;
  for (int i = 0; i < LF; ++i) r[i] = std::sqrt(a[i]);
  return r;
#endif
}
EP_INLINE vd root(vd a) {
#if EP_512
  return (vd)_mm512_sqrt_pd((__m512d)a);
#elif EP_256
  return (vd)_mm256_sqrt_pd((__m256d)a);
#elif EP_128
  return (vd)_mm_sqrt_pd((__m128d)a);
#else
  vd r;
  for (int i = 0; i < LD; ++i) r[i] = std::sqrt(a[i]);
  return r;
#endif
}

EP_INLINE vi rounded(vf a) {
#if EP_512
  return (vi)_mm512_cvtps_epi32((__m512)a);
#elif EP_256
  return (vi)_mm256_cvtps_epi32((__m256)a);
#elif EP_128
  return (vi)_mm_cvtps_epi32((__m128)a);
#else
  vf magic = splat<vf>(12582912.0f);
  return (vi)(a + magic) - (vi)magic;
#endif
}
EP_INLINE vf number(vi a) { return __builtin_convertvector(a, vf); }

// Sums are kept in double: two vectors for the lanes of one vector of float.
struct Wide {
  vd lo, hi;
};
EP_INLINE Wide widened(vf a) {
#if EP_512
  return {(vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)a)), (vd)_mm512_cvtps_pd((__m256)_mm512_extractf32x8_ps((__m512)a, 1))};
#elif EP_256
  return {(vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)a)), (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)a, 1))};
#elif EP_128
  return {(vd)_mm_cvtps_pd((__m128)a), (vd)_mm_cvtps_pd(_mm_movehl_ps((__m128)a, (__m128)a))};
#else
  Wide w;
  for (int i = 0; i < LD; ++i) w.lo[i] = a[i], w.hi[i] = a[LD + i];
  return w;
#endif
}
EP_INLINE vf narrowed(Wide a) {
#if EP_512
  return (vf)_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps((__m512d)a.lo)), _mm512_cvtpd_ps((__m512d)a.hi), 1);
#elif EP_256
  return (vf)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps((__m256d)a.lo)), _mm256_cvtpd_ps((__m256d)a.hi), 1);
#elif EP_128
  return (vf)_mm_movelh_ps(_mm_cvtpd_ps((__m128d)a.lo), _mm_cvtpd_ps((__m128d)a.hi));
#else
  vf r;
  for (int i = 0; i < LD; ++i) r[i] = (float)a.lo[i], r[LD + i] = (float)a.hi[i];
  return r;
#endif
}
EP_INLINE Wide operator+(Wide a, Wide b) { return {a.lo + b.lo, a.hi + b.hi}; }
EP_INLINE Wide operator*(Wide a, Wide b) { return {a.lo * b.lo, a.hi * b.hi}; }
EP_INLINE Wide operator/(Wide a, Wide b) { return {a.lo / b.lo, a.hi / b.hi}; }

// What a kernel computes in: Lane<float> for float and the half types, Lane<double>, Lane<int64_t>.
template <class C> struct Lane;
template <> struct Lane<float> {
  using V = vf;
  using M = vi;
  using W = Wide;
  static constexpr int L = LF;
  static EP_INLINE W zero() { return {vd{}, vd{}}; }
  static EP_INLINE W wide(V v) { return widened(v); }
  static EP_INLINE V narrow(W w) { return narrowed(w); }
  static EP_INLINE W all(double v) { return {splat<vd>(v), splat<vd>(v)}; }
};
template <> struct Lane<double> {
  using V = vd;
  using M = vl;
  using W = vd;
  static constexpr int L = LD;
  static EP_INLINE W zero() { return vd{}; }
  static EP_INLINE W wide(V v) { return v; }
  static EP_INLINE V narrow(W w) { return w; }
  static EP_INLINE W all(double v) { return splat<vd>(v); }
};
template <> struct Lane<int64_t> {
  using V = vl;
  using M = vl;
  using W = vl;
  static constexpr int L = LD;
  static EP_INLINE W zero() { return vl{}; }
  static EP_INLINE W wide(V v) { return v; }
  static EP_INLINE V narrow(W w) { return w; }
  static EP_INLINE W all(double v) { return splat<vl>((int64_t)v); }
};

template <class C> constexpr C lowest() {
  return std::numeric_limits<C>::has_infinity ? -std::numeric_limits<C>::infinity() : std::numeric_limits<C>::min();
}

// 2^n for n from -126 to 127
EP_INLINE vf power_of_two(vi n) { return (vf)((n + 127) << 23); }

struct Reduced {
  vf r;  // in [-ln2/2, ln2/2]
  vi n;
};
EP_INLINE Reduced exp_range(vf x) {
  vi n = rounded(x * 1.44269504088896341f);
  vf k = number(n);
  vf r = x - k * 0.693359375f;
  r = r - k * -2.12194440e-4f;
  return {r, n};
}
EP_INLINE vf expm1_small(vf r) {  // expm1 for |r| <= ln2/2
  vf p = splat<vf>(1.9841270e-4f);
  p = p * r + 1.3888889e-3f;
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 5.0000000e-1f;
  return p * (r * r) + r;
}
// exp(x) for x <= 88; 0 below -87.
EP_INLINE vf exponential(vf x) {
  vf low = splat<vf>(-87.0f);
  vi tiny = x < low;
  Reduced q = exp_range(largest(x, low));
  vf e = (expm1_small(q.r) + 1.0f) * power_of_two(q.n);
  return (vf)((vi)e & ~tiny);
}
// exp(x) - 1 for x <= 88, to the last digits where x is small
EP_INLINE vf exponential_m1(vf x) {
  Reduced q = exp_range(largest(x, splat<vf>(-80.0f)));
  vf scale = power_of_two(q.n);
  return expm1_small(q.r) * scale + (scale - 1.0f);
}
// log(x) for normal x > 0
EP_INLINE vf logarithm(vf x) {
  vu bits = (vu)x;  // without a sign: those of a negative x, which means nothing, may wrap around
  vi n = (vi)(bits - 0x3f3504f3u) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  vf m = (vf)(bits - ((vu)n << 23));
  vf f = m - 1.0f, k = number(n);
  vf p = splat<vf>(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  vf s = f * f;
  vf tail = p * f * s + k * -2.12194440e-4f - 0.5f * s;
  return f + tail + k * 0.693359375f;
}
// log(1 + x) for -1 < x, to the last digits where x is small
EP_INLINE vf logarithm_p1(vf x) {
  vf w = x + 1.0f;
  vf d = w - 1.0f;
  vi exact = d == x;
  vf y = logarithm(w);
  vi still = w == 1.0f;
  vf safe = still ? splat<vf>(1.0f) : d;
  vf scaled = y * (x / safe);
  return still ? x : exact ? y : scaled;
}

template <class F> EP_INLINE vd each(vd x, F f) {
  vd y;
  for (int i = 0; i < LD; ++i) y[i] = f(x[i]);
  return y;
}
inline vd exponential(vd x) {
  return each(x, [](double v) { return std::exp(v); });
}
inline vd exponential_m1(vd x) {
  return each(x, [](double v) { return std::expm1(v); });
}
inline vd logarithm(vd x) {
  return each(x, [](double v) { return std::log(v); });
}
inline vd logarithm_p1(vd x) {
  return each(x, [](double v) { return std::log1p(v); });
}
// Cube root of x >= 0, normal or zero: a guess from the exponent, then three steps of Halley's iteration.
EP_INLINE vd cube_root(vd x) {
  vd r;
  for (int i = 0; i < LD; ++i) {
    int64_t bits;
    double v = x[i];
    std::memcpy(&bits, &v, 8);
    bits = bits / 3 + (int64_t(0x2A9F7893) << 32);
    std::memcpy(&v, &bits, 8);
    r[i] = v;
  }
  for (int step = 0; step < 3; ++step) {
    vd cube = r * r * r;
    r = r * ((cube + 2 * x) / (2 * cube + x));
  }
  vl some = (x > 0) & (x < std::numeric_limits<double>::infinity());
  return some ? r : x;
}
template <class F> EP_INLINE Wide each(Wide a, F f) { return {each(a.lo, f), each(a.hi, f)}; }
EP_INLINE Wide root(Wide a) { return {root(a.lo), root(a.hi)}; }
EP_INLINE Wide cube_root(Wide a) { return {cube_root(a.lo), cube_root(a.hi)}; }

}  // namespace everypool
