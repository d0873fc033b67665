// The whole plane as one window: what planes and pixels share.
#pragma once
#include "work.h"

namespace everypool {

constexpr int MOST_VECTORS = 8;  // in a tree

// Joins vectors of elements in pairs, then what pairs have become: NaN is only looked for among the elements.
struct LargestOf {
  vi odd{};  // NaN has been seen
  EP_INLINE vf one(vf v) {
    odd |= unordered(v, v);
    return v;
  }
  EP_INLINE vf two(vf a, vf b) {
    odd |= unordered(a, b);
    return largest(a, b);
  }
  EP_INLINE vf join(vf a, vf b) const { return largest(a, b); }
};
struct TotalOf {
  EP_INLINE vf one(vf v) const { return v; }
  EP_INLINE vf two(vf a, vf b) const { return a + b; }
  EP_INLINE vf join(vf a, vf b) const { return a + b; }
};
// M vectors, `step` elements apart, in a balanced tree. Sums in float are off by no more than the roundings of its three levels.
template <int M, class T, class Op> EP_INLINE vf tree(const T* x, int64_t step, Op& op) {
  if constexpr (M == 1) {
    return op.one(load_as(x));
  } else if constexpr (M == 2) {
    return op.two(load_as(x), load_as(x + step));
  } else {
    constexpr int left = M / 4 * 2 + (M == 3 ? 2 : 0);  // as many pairs as can be
    const vf first = tree<left>(x, step, op);
    return op.join(first, tree<M - left>(x + left * step, step, op));
  }
}

bool global_integers_forward(const Plan& plan, const Call& call);  // maxima of which only the value is wanted
bool global_pixels_forward(const Plan& plan, const Call& call);  // means, and maxima of which only the value is wanted
bool global_pixels_backward(const Plan& plan, const Call& call);  // of means

}  // namespace everypool
