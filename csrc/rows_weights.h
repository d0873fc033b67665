// Sliding windows whose elements have weights: what values and gradients share.
#pragma once
#include <vector>

#include "ops.h"
#include "rows.h"

namespace everypool {

constexpr float SOFT_RANGE = 60;  // exponents below that lose nothing in float
constexpr float SOFT_LEAST = 1e-30f;  // nor does an element times its weight

// What a plane's exponents and elements are measured from.
struct Around {
  float top = 0;     // has the largest weight
  float middle = 0;  // 0, or where the elements lie close together far from 0, one of them

  // false: the plane is not finite, or its weights, or elements times their weights, do not fit a float
  template <class T> bool find(const T* x, int64_t n, float beta) {
    vf low = splat<vf>(std::numeric_limits<float>::infinity()), high = -low;
    vf small = low;  // magnitude of what is not zero
    vi odd{};
    const auto see = [&](vf v) __attribute__((always_inline)) {
      odd |= unordered(v, v);
      small = -largest(-small, v == 0 ? splat<vf>(-std::numeric_limits<float>::infinity()) : -largest(v, -v));
      low = -largest(-low, -v), high = largest(high, v);
    };
    int64_t j = 0;
    for (; j + LF <= n; j += LF) see(load_as(x + j));
    for (; j < n; ++j) see(splat<vf>(value(x + j)));
    float least = low[0], most = high[0], tiny = small[0];
    for (int i = 1; i < LF; ++i) least = std::min(least, low[i]), most = std::max(most, high[i]), tiny = std::min(tiny, small[i]);
    if (any(odd) || !(std::abs(beta) * (most - least) <= SOFT_RANGE)) return false;
    top = beta < 0 ? least : most;
    middle = std::min(std::abs(least), std::abs(most)) > 2 * (most - least) ? top : 0.0f;
    return middle != 0 || tiny * std::exp(-std::abs(beta) * (most - least)) > SOFT_LEAST;
  }
};

// Kept for the gradient: whether the general loops have done it and keep theirs behind, then two numbers per window.
constexpr int64_t KEPT_HEADER = 64;
inline uint8_t& general_flag(const Call& call) { return *static_cast<uint8_t*>(call.aux[0]); }
inline float* kept_of(const Call& call) { return reinterpret_cast<float*>(static_cast<uint8_t*>(call.aux[0]) + KEPT_HEADER); }

// The power that all windows have, 2 or 3, else 0.
inline int whole_power(const Call& call) {
  for (int64_t i = 1; i < call.parameters; ++i)
    if (call.parameter[i] != call.parameter[0]) return 0;
  const double p = call.parameters > 0 ? call.parameter[0] : 0;
  return p == 2 || p == 3 ? (int)p : 0;
}
EP_INLINE vi until(int64_t number) {  // the lanes before it
  vi m;
  for (int i = 0; i < LF; ++i) m[i] = i < number ? -1 : 0;
  return m;
}

bool rows_powers(const Plan& plan, const Grid& grid, const Call& call);             // false: the general loops must do it
bool rows_soft(const Plan& plan, const Grid& grid, const Call& call);               // false: the general loops must do it
bool rows_weighted_gradient(const Plan& plan, const Grid& grid, const Call& call);  // of means, powers and softmax weights

}  // namespace everypool
