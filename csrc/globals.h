// The whole plane as one window: what planes and pixels share.
#pragma once
#include "plan.h"
#include "tile.h"

namespace everypool {

constexpr int64_t GLOBALS_SERIAL = 32768;  // elements below which threads cost more than they bring
constexpr int MOST_VECTORS = 8;            // in a tree

struct LargestOf {
  vi odd{};  // NaN has been seen
  EP_INLINE vf operator()(vf a, vf b) {
    odd |= unordered(a, b);
    return largest(a, b);
  }
};
struct TotalOf {
  EP_INLINE vf operator()(vf a, vf b) const { return a + b; }
};
// M vectors, `step` elements apart, in a balanced tree. Sums in float are off by no more than the roundings of its three levels.
template <int M, class T, class Op> EP_INLINE vf tree(const T* x, int64_t step, Op& op) {
  if constexpr (M == 1) {
    return load_as(x);
  } else {
    const vf left = tree<M / 2>(x, step, op);
    return op(left, tree<M - M / 2>(x + M / 2 * step, step, op));
  }
}

bool pixels_forward(const Plan& plan, const Call& call);  // means, and maxima of which only the value is wanted
bool pixels_backward(const Plan& plan, const Call& call);  // of means

}  // namespace everypool
