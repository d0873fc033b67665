// Softmax-weighted windows that share no rows: every element's weight is computed once, around one value per plane.
#include "rows_weights.h"

namespace everypool {
namespace {

// Windows are pairs of sums: of the weights, and of the weighted elements.
template <class T> class SoftRows {
 public:
  SoftRows(const Grid& grid, const Call& call)
      : g_(grid), call_(call), beta_((float)*call.parameter) {
    lead_ = round_up(g_.w.left, LF);
    pitch_ = round_up(lead_ + std::max(g_.w.n, (g_.w.out + LF) * g_.w.stride + g_.w.kernel), LF) + LF;
    sums_.assign(2 * pitch_, 0.0f);
  }
  // false: these values need windows with a reference of their own
  bool plane(int64_t number) {
    const T* x = static_cast<const T*>(call_.x) + number * g_.in;
    if (!around_.find(x, g_.in, beta_)) return false;
    T* y = static_cast<T*>(call_.y[0]) + number * g_.out;
    float* kept = call_.save ? kept_of(call_) + number * g_.out : nullptr;
    for (int64_t h = 0; h < g_.h.out; ++h) {
      for (int64_t r = g_.h.first(h); r < g_.h.end(h); ++r) map_row(x + r * g_.w.n, sums_.data(), r > g_.h.first(h));
      with_constant<1, 2, 3>(g_.w.stride, [&](auto S) {
        with_constant<2, 3>(g_.w.kernel, [&](auto K) { finish_row<S, K>(y + h * g_.w.out, kept ? kept + h * g_.w.out : nullptr); });
      });
    }
    return true;
  }

 private:
  const Grid& g_;
  const Call& call_;
  const float beta_;
  int64_t lead_, pitch_;
  std::vector<float> sums_;
  Around around_;

  // the weights of a row's elements, and the weighted elements, in place or on top of what is there
  void map_row(const T* x, float* to, bool add) {
    to += lead_;
    const vf beta = splat<vf>(beta_), c = splat<vf>(around_.top), middle = splat<vf>(around_.middle);
    const int64_t n = g_.w.n;
    const auto put = [&](int64_t j, vf v) __attribute__((always_inline)) {
      const vf e = exponential(beta * (v - c)), w = e * (v - middle);
      storeu(to + j, add ? loadu<vf>(to + j) + e : e);
      storeu(to + pitch_ + j, add ? loadu<vf>(to + pitch_ + j) + w : w);
    };
    int64_t j = 0;
    for (; j + LF <= n; j += LF) put(j, load_as(x + j));
    if (j == n) return;
    put(j, load_part(x + j, n - j));
    for (int k = 0; k < 2; ++k) storeu(to + k * pitch_ + n, vf{});
  }
  template <int S, int K> EP_INLINE vf window(const float* p) const {
    if constexpr (S > 1 && S == K) {
      vf v[S];
      for (int i = 0; i < S; ++i) v[i] = loadu<vf>(p + i * LF);
      vf sum = phase<0, S>(v) + phase<1, S>(v);
      if constexpr (S == 3) sum = sum + phase<2, S>(v);
      return sum;
    } else {
      const int64_t kernel = K ? K : g_.w.kernel;
      vf sum = strided<S, vf>(p, g_.w.stride);
      for (int64_t t = 1; t < kernel; ++t) sum = sum + strided<S, vf>(p + t, g_.w.stride);
      return sum;
    }
  }
  template <int S, int K> void finish_row(T* y, float* kept) const {
    const float* from = sums_.data() + lead_ - g_.w.left;
    const vf middle = splat<vf>(around_.middle);
    for (int64_t o = 0; o < g_.w.out; o += LF) {
      const float* p = from + o * g_.w.stride;
      const vf sum = window<S, K>(p), above = window<S, K>(p + pitch_) / sum;
      store_until(y + o, middle + above, y + g_.w.out);
      if (!kept) continue;
      store_until(kept + o, sum, kept + g_.w.out);
      store_until(kept + g_.planes * g_.out + o, above, kept + g_.planes * g_.out + g_.w.out);
    }
  }
};

}  // namespace

bool rows_soft(const Plan& plan, const Grid& g, const Call& call) {
  if (call.parameters != 1) return false;
  return with_type(plan.type, [&](auto type) {
    std::atomic<bool> declined{false};
    const bool done = in_parallel(g.planes, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) {
      SoftRows<decltype(type)> rows(g, call);
      for (int64_t plane = begin; plane < end && !declined; ++plane)
        if (!rows.plane(plane)) declined = true;
    });
    return done && !declined;
  });
}

}  // namespace everypool
