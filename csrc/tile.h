// Planes in and out of tiles: a tile holds, position after position, one vector with a lane for each of L planes.
#pragma once
#include <utility>
#include "vec.h"

namespace everypool {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T> struct ComputeOf {
  using type = float;  // holds every value of the half types and of 8 and 16 bit integers
};
template <> struct ComputeOf<double> {
  using type = double;
};
template <> struct ComputeOf<int32_t> {
  using type = double;
};
template <> struct ComputeOf<int64_t> {
  using type = int64_t;
};
template <class T> using Compute = typename ComputeOf<T>::type;

typedef uint16_t vh __attribute__((vector_size(2 * LF)));

EP_INLINE vf from_bits(vh h, bfloat16) { return (vf)(__builtin_convertvector(h, vu) << 16); }
EP_INLINE vf from_bits(vh h, float16) {
#if EP_512 && defined(__F16C__)
  return (vf)_mm512_cvtph_ps((__m256i)h);
#elif EP_256 && defined(__F16C__)
  return (vf)_mm256_cvtph_ps((__m128i)h);
#else
  vu w = __builtin_convertvector(h, vu);
  vf magnitude = (vf)((w & 0x7fff) << 13) * 5.192296858534828e33f;  // 2^112: denormal halves come out right
  vi special = (vi)(w & 0x7c00) == 0x7c00;
  vu bits = (vu)magnitude | ((vu)special & 0x7f800000u);
  return (vf)(bits | ((w & 0x8000) << 16));
#endif
}
EP_INLINE vh to_bits(vf v, bfloat16) {
  vu w = (vu)v;
  vu even = w + 0x7fff + ((w >> 16) & 1);
  vu nan = (vu)(v != v);
  vu r = (even & ~nan) | ((w | 0x400000u) & nan);
  return __builtin_convertvector(r >> 16, vh);
}
EP_INLINE vh to_bits(vf v, float16) {
#if EP_512 && defined(__F16C__)
  return (vh)_mm512_cvtps_ph((__m512)v, 0);
#elif EP_256 && defined(__F16C__)
  return (vh)_mm256_cvtps_ph((__m256)v, 0);
#else
  vu w = (vu)v, sign = (w >> 16) & 0x8000, a = w & 0x7fffffff;
  vu normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;
  vf magic = splat<vf>(0.5f);  // 2^-1: adding it leaves a denormal half in the low bits, rounded to even
  vu small = (vu)((vf)a + magic) - (vu)magic;
  vu r = (vi)a < (113 << 23) ? small : normal;
  r = (vi)a >= 0x477ff000 ? splat<vu>(0x7c00u) : r;
  r = (vi)a > 0x7f800000 ? splat<vu>(0x7e00u) : r;
  return __builtin_convertvector(r | sign, vh);
#endif
}

// L elements of type T as a vector of Compute<T>
EP_INLINE vf load_as(const float* p) { return loadu<vf>(p); }
EP_INLINE vd load_as(const double* p) { return loadu<vd>(p); }
EP_INLINE vl load_as(const int64_t* p) { return loadu<vl>(p); }
EP_INLINE vf load_as(const bfloat16* p) { return from_bits(loadu<vh>(p), bfloat16{}); }
EP_INLINE vf load_as(const float16* p) { return from_bits(loadu<vh>(p), float16{}); }
template <class T, int N> struct Packed {
  typedef T type __attribute__((vector_size(sizeof(T) * N)));
};
EP_INLINE vf load_as(const int8_t* p) { return __builtin_convertvector(loadu<Packed<int8_t, LF>::type>(p), vf); }
EP_INLINE vf load_as(const uint8_t* p) { return __builtin_convertvector(loadu<Packed<uint8_t, LF>::type>(p), vf); }
EP_INLINE vf load_as(const int16_t* p) { return __builtin_convertvector(loadu<Packed<int16_t, LF>::type>(p), vf); }
EP_INLINE vd load_as(const int32_t* p) { return __builtin_convertvector(loadu<Packed<int32_t, LD>::type>(p), vd); }

EP_INLINE void store_as(float* p, vf v) { storeu(p, v); }
EP_INLINE void store_as(double* p, vd v) { storeu(p, v); }
EP_INLINE void store_as(int64_t* p, vl v) { storeu(p, v); }
EP_INLINE void store_as(bfloat16* p, vf v) { storeu(p, to_bits(v, bfloat16{})); }
EP_INLINE void store_as(float16* p, vf v) { storeu(p, to_bits(v, float16{})); }
EP_INLINE void store_as(int8_t* p, vf v) { storeu(p, __builtin_convertvector(v, Packed<int8_t, LF>::type)); }
EP_INLINE void store_as(uint8_t* p, vf v) { storeu(p, __builtin_convertvector(v, Packed<uint8_t, LF>::type)); }
EP_INLINE void store_as(int16_t* p, vf v) { storeu(p, __builtin_convertvector(v, Packed<int16_t, LF>::type)); }
EP_INLINE void store_as(int32_t* p, vd v) { storeu(p, __builtin_convertvector(v, Packed<int32_t, LD>::type)); }

// the same for fewer than L elements
template <class T> EP_INLINE auto load_part(const T* p, int64_t number) {
  T part[Lane<Compute<T>>::L] = {};
  std::memcpy((void*)part, p, sizeof(T) * number);
  return load_as(part);
}
template <class T, class V> EP_INLINE void store_part(T* p, V v, int64_t number) {
  T part[Lane<Compute<T>>::L];
  store_as(part, v);
  std::memcpy((void*)p, part, sizeof(T) * number);
}

// One step of a transposition: blocks of S lanes off the diagonal change places between a and b.
template <int S, class V, int... I> EP_INLINE void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  V first = __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...);
  b = __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
  a = first;
}
template <int S, int L, class V> EP_INLINE void transpose_steps(V* rows) {
  if constexpr (S < L) {
    for (int i = 0; i < L; ++i)
      if (!(i & S)) exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, L>{});
    transpose_steps<2 * S, L>(rows);
  }
}
#if EP_256
EP_INLINE void transpose(vf* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps((__m256)r[i], (__m256)r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps((__m256)r[i], (__m256)r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = (vf)_mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = (vf)_mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}
#else
EP_INLINE void transpose(vf* rows) { transpose_steps<1, LF>(rows); }
#endif
EP_INLINE void transpose(vd* rows) { transpose_steps<1, LD>(rows); }
EP_INLINE void transpose(vl* rows) { transpose_steps<1, LD>(rows); }

// Lane i of the result is the sum of the lanes of rows[i].
template <int S = 1> EP_INLINE vd transposed_sum(vd* rows) {
  if constexpr (S == LD) {
    return rows[0];
  } else {
    for (int i = 0; i < LD; i += 2 * S) {
      exchange<S>(rows[i], rows[i + S], std::make_integer_sequence<int, LD>{});
      rows[i] = rows[i] + rows[i + S];
    }
    return transposed_sum<2 * S>(rows);
  }
}
EP_INLINE vd halves(Wide w) { return w.lo + w.hi; }
EP_INLINE vd halves(vd w) { return w; }

// `count` elements of each of L planes, from `offset` on, into a tile.
template <class T> void gather_tile(const T* const* planes, int64_t offset, int64_t count, Compute<T>* tile) {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  constexpr int L = Lane<C>::L;
  V rows[L];
  int64_t p = 0;
  const auto block = [&](int64_t at) {
    for (int i = 0; i < L; ++i) rows[i] = load_as(planes[i] + offset + at);
    transpose(rows);
    for (int j = 0; j < L; ++j) storeu(tile + (at + j) * L, rows[j]);
  };
  for (; p + L <= count; p += L) block(p);
  if (p == count) return;
  if (count >= L) return block(count - L);
  for (int i = 0; i < L; ++i) rows[i] = load_part(planes[i] + offset + p, count - p);
  transpose(rows);
  for (int64_t j = 0; j < count - p; ++j) storeu(tile + (p + j) * L, rows[j]);
}

// A tile's positions 0 to count - 1 into the first `planes_used` of L planes, from `offset` on.
template <class T> void scatter_tile(T* const* planes, int planes_used, int64_t offset, int64_t count, const Compute<T>* tile) {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  constexpr int L = Lane<C>::L;
  V rows[L];
  int64_t p = 0;
  const auto block = [&](int64_t at) {
    for (int j = 0; j < L; ++j) rows[j] = loadu<V>(tile + (at + j) * L);
    transpose(rows);
    for (int i = 0; i < planes_used; ++i) store_as(planes[i] + offset + at, rows[i]);
  };
  for (; p + L <= count; p += L) block(p);
  if (p == count) return;
  if (count >= L) return block(count - L);
  for (int j = 0; j < L; ++j) rows[j] = j < count - p ? loadu<V>(tile + (p + j) * L) : V{};
  transpose(rows);
  for (int i = 0; i < planes_used; ++i) store_part(planes[i] + offset + p, rows[i], count - p);
}

// The same for memory in which the planes' elements lie side by side, `pitch` elements from position to position.
template <class T> void gather_pixels(const T* x, int64_t pitch, int lanes, int64_t count, Compute<T>* tile) {
  constexpr int L = Lane<Compute<T>>::L;
  if (lanes == L)
    for (int64_t p = 0; p < count; ++p) storeu(tile + p * L, load_as(x + p * pitch));
  else
    for (int64_t p = 0; p < count; ++p) storeu(tile + p * L, load_part(x + p * pitch, lanes));
}
template <class T> void scatter_pixels(T* y, int64_t pitch, int lanes, int64_t count, const Compute<T>* tile) {
  using V = typename Lane<Compute<T>>::V;
  constexpr int L = Lane<Compute<T>>::L;
  if (lanes == L)
    for (int64_t p = 0; p < count; ++p) store_as(y + p * pitch, loadu<V>(tile + p * L));
  else
    for (int64_t p = 0; p < count; ++p) store_part(y + p * pitch, loadu<V>(tile + p * L), lanes);
}

}  // namespace everypool
