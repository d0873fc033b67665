// Windows and their elements, one after the other.
#pragma once
#include "ops.h"
#include "plan.h"

namespace everypool {

template <class C> struct Bits;
template <> struct Bits<float> {
  using M = vi;
};
template <> struct Bits<double> {
  using M = vl;
};
template <> struct Bits<int64_t> {
  using M = vl;
};

// Calls f(offset in elements, tap number) for every element of a window, in row-major order.
struct Box {
  int64_t start, plane, row, step;  // element offsets
  int64_t d, h, w;                  // taps
};
template <int K, class F> EP_INLINE void walk(const Box& b, F f) {
  if constexpr (K > 0) {
    if (b.d == 1 && b.h == K && b.w == K) {
#pragma GCC unroll 4
      for (int i = 0; i < K; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < K; ++j) f(b.start + i * b.row + j * b.step, i * K + j);
      return;
    }
  }
  int64_t t = 0;
  for (int64_t i = 0; i < b.d; ++i)
    for (int64_t j = 0; j < b.h; ++j) {
      int64_t at = b.start + i * b.plane + j * b.row;
      for (int64_t k = 0; k < b.w; ++k, at += b.step) f(at, t++);
    }
}

template <class I, class M> EP_INLINE void store_index(void* p, int64_t at, M i) {
  constexpr int L = sizeof(M) / sizeof(M{}[0]);
  typedef I Few __attribute__((vector_size(sizeof(I) * L)));
  if constexpr (std::is_same_v<M, vi> && sizeof(I) == 1)
    to_bytes(static_cast<uint8_t*>(p) + at, i);
  else
    storeu(static_cast<I*>(p) + at, __builtin_convertvector(i, Few));
}
template <class I, class M> EP_INLINE M load_index(const void* p, int64_t at) {
  constexpr int L = sizeof(M) / sizeof(M{}[0]);
  typedef I Few __attribute__((vector_size(sizeof(I) * L)));
  if constexpr (std::is_same_v<M, vi> && sizeof(I) == 1)
    return from_bytes(static_cast<const uint8_t*>(p) + at);
  else
    return __builtin_convertvector(loadu<Few>(static_cast<const I*>(p) + at), M);
}

struct Place {
  int64_t o, d, h, w;       // window
  int64_t sd, sh, sw;       // its first element
  int64_t cd, ch, cw;       // its elements
};

// Every window of a band.
template <class F> EP_INLINE void each_window(const Fold& f, int64_t sample, int64_t low, int64_t high, F visit) {
  int64_t from[3] = {0, 0, 0}, to[3];
  for (int a = 0; a < 3; ++a) to[a] = f.axis[a].out;
  from[f.band_axis] = low, to[f.band_axis] = high;
  for (int64_t d = from[0]; d < to[0]; ++d) {
    const Window deep = f.axis[0].at(d, sample);
    for (int64_t h = from[1]; h < to[1]; ++h) {
      const Window tall = f.axis[1].at(h, sample);
      int64_t o = (d * f.axis[1].out + h) * f.axis[2].out + from[2];
      Cursor flat(f.axis[2], sample, from[2]);
      for (int64_t w = from[2]; w < to[2]; ++w, ++o, flat.next())
        visit(Place{o, d, h, w, deep.start, tall.start, (*flat).start, deep.count, tall.count, (*flat).count});
    }
  }
}

template <class C> struct Divide {
  const Plan& plan;
  const Fold& fold;
  const int64_t sample;
  // the divisor of a mean, from the number of elements that exist and the number that count
  EP_INLINE typename Lane<C>::W operator()(const Place& p, int64_t all, typename Lane<C>::V number) const {
    using L = Lane<C>;
    if (plan.divisor == FIXED) return L::all(plan.fixed);
    typename L::V most = largest(number, splat<typename L::V>(1));
    if (plan.divisor == VALID || !fold.has_cells) return L::wide(most);
    double cells = double(fold.axis[0].cells(p.d, sample)) * fold.axis[1].cells(p.h, sample) * fold.axis[2].cells(p.w, sample);
    return L::all(cells - all) + L::wide(number);
  }
};

}  // namespace everypool
