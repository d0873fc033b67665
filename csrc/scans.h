// Running maxima: what the loops down columns and those along rows share.
#pragma once
#include "lines.h"

namespace everypool {

// `n` elements that lie `inner` apart are run along, in `outer` places: from the first on, or from the last on backwards.
struct Course {
  int64_t outer = 1, n = 1, inner = 1;
  bool backwards = false;
};

// ---- what is kept for the gradient: one bit per element, does a new maximum begin there? ---------------------------------

template <class C> using Word = std::conditional_t<(Lane<C>::L > 8), uint16_t, uint8_t>;  // of one vector

template <class M, int... I> EP_INLINE M bit_of_lane(std::integer_sequence<int, I...>) { return M{(1 << I)...}; }
template <class M> EP_INLINE M bit_of_lane() {
  return bit_of_lane<M>(std::make_integer_sequence<int, sizeof(M) / sizeof(M{}[0])>{});
}
template <class M> EP_INLINE M unpacked(int word) { return (M)((splat<M>(word) & bit_of_lane<M>()) == bit_of_lane<M>()); }

template <class M> EP_INLINE int packed_lanes(M mask) {
  int word = 0;
  for (size_t i = 0; i < sizeof(M) / sizeof(mask[0]); ++i) word |= (int)(mask[i] & 1) << i;
  return word;
}
EP_INLINE int packed(vi mask) {
#if EP_512
  return (int)_mm512_movepi32_mask((__m512i)mask);
#elif EP_256
  return _mm256_movemask_ps((__m256)mask);
#elif EP_128
  return _mm_movemask_ps((__m128)mask);
#else
  return packed_lanes(mask);
#endif
}
EP_INLINE int packed(vl mask) {
#if EP_512
  return (int)_mm512_movepi64_mask((__m512i)mask);
#elif EP_256
  return _mm256_movemask_pd((__m256d)mask);
#elif EP_128
  return _mm_movemask_pd((__m128d)mask);
#else
  return packed_lanes(mask);
#endif
}

// Does x begin a new maximum, after `before`? What is NaN always does, and nothing else after it.
template <bool LAST, class V> EP_INLINE auto begins(V x, V before) { return (LAST ? x >= before : x > before) | (x != x); }

// Maxima are elements: there is nothing to round.
template <class T, class V> EP_INLINE void store_exactly(T* p, V v) { store_as(p, v); }
EP_INLINE void store_exactly(bfloat16* p, vf v) { storeu(p, __builtin_convertvector((vu)v >> 16, vh)); }

// ---- gradients: what the windows give is added up, until the element is met at which their maximum began -----------------

template <int FROM, int... I> EP_INLINE vl half_mask(vi mask, std::integer_sequence<int, I...>) {
  return (vl)__builtin_shufflevector(mask, mask, (FROM + I / 2)...);
}
EP_INLINE Wide cleared(Wide sum, vi where) {
  constexpr auto lanes = std::make_integer_sequence<int, LF>{};
  return {keep(sum.lo, ~half_mask<0>(where, lanes)), keep(sum.hi, ~half_mask<LD>(where, lanes))};
}
EP_INLINE vd cleared(vd sum, vl where) { return keep(sum, ~where); }

// Adds g to the sum; the result is what the element gets.
template <class C> EP_INLINE typename Lane<C>::V collected(typename Lane<C>::V g, typename Lane<C>::M here, typename Lane<C>::W& sum) {
  sum = sum + Lane<C>::wide(g);
  const typename Lane<C>::V found = keep(Lane<C>::narrow(sum), here);
  sum = cleared(sum, here);
  return found;
}

// ---- loops ---------------------------------------------------------------------------------------------------------------

enum Pass { VALUES, WINNERS, TAKE, GRADIENT };

// false: the plan is none of these loops'
bool scan_of(const Plan& plan, Course& course);

// inner > 1: a vector of columns at a time
int64_t columns_aux_bytes(int type, const Course& course);
bool columns_run(const Plan& plan, const Course& course, const Call& call, Pass pass);
// inner == 1
int64_t lines_aux_bytes(int type, const Course& course);
bool lines_run(const Plan& plan, const Course& course, const Call& call, Pass pass);

}  // namespace everypool
