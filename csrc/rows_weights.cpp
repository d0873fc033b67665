// Gradients of weighted sliding windows along rows: what windows give is spread over their elements first, axis by axis, and
// then weighted once per element.
#include "rows_weights.h"

namespace everypool {
namespace {

// dx = weight * (A + beta * (x' * A - B)), A = sum of grad / weights, B = sum of grad / weights * y', measured from `middle`
template <class T> struct SoftBack {
  static constexpr int K = 2;
  static constexpr bool values = true;
  const Grid& g;
  const Call& call;
  const vf beta;
  const bool authors;
  Around around{};

  SoftBack(const Plan& plan, const Grid& grid, const Call& c)
      : g(grid), call(c), beta(splat<vf>((float)*c.parameter)), authors(plan.plain_gradient) {}
  void begin(const T* x) { around.find(x, g.in, beta[0]); }
  EP_INLINE void windows(int64_t at, int64_t, int64_t, vf grad, int64_t number, vf* to) const {
    const float *sum = kept_of(call) + at, *above = sum + g.planes * g.out;
    to[0] = grad / (number == LF ? loadu<vf>(sum) : load_part(sum, number) + keep(splat<vf>(1), ~until(number)));
    to[1] = to[0] * (number == LF ? loadu<vf>(above) : load_part(above, number));
  }
  EP_INLINE vf element(vf x, const vf* sums) const {
    const vf e = exponential(beta * (x - around.top));
    return authors ? e * sums[0] : e * (sums[0] + beta * ((x - around.middle) * sums[0] - sums[1]));
  }
};

// dx = sum of grad * factor
template <class T> struct MeanBack {
  static constexpr int K = 1;
  static constexpr bool values = false;
  const std::vector<double> rows;
  std::vector<float> columns;

  MeanBack(const Plan& plan, const Grid& g, const Call&) : rows(factors(plan, 1)), columns(g.w.out + LF) {
    const std::vector<double> exact = factors(plan, 2);
    std::copy(exact.begin(), exact.end(), columns.begin());
  }
  void begin(const T*) {}
  EP_INLINE void windows(int64_t, int64_t h, int64_t o, vf grad, int64_t, vf* to) const {
    to[0] = grad * (loadu<vf>(columns.data() + o) * (float)rows[h]);
  }
  EP_INLINE vf element(vf, const vf* sums) const { return sums[0]; }
};

// dx = a^(p - 1) * sum of grad / n / y^(p - 1)
template <class T, int P> struct PowerBack {
  static constexpr int K = 1;
  static constexpr bool values = true;
  const Call& call;
  const MeanBack<T> mean;
  Setting<float> setting;

  PowerBack(const Plan& plan, const Grid& g, const Call& c)
      : call(c), mean(plan, g, c), setting{splat<vf>(P), (float)plan.eps, plan.sign == ABS, plan.sum, false} {}
  void begin(const T*) {}
  EP_INLINE void windows(int64_t at, int64_t h, int64_t o, vf grad, int64_t number, vf* to) const {
    mean.windows(at, h, o, grad, number, to);
    const float* kept = kept_of(call) + at;
    const vf y = number == LF ? loadu<vf>(kept) : load_part(kept, number);
    to[0] = y == 0 ? vf{} : to[0] / (P == 2 ? y : y * y);
  }
  EP_INLINE vf element(vf x, const vf* sums) const {
    const vf a = positive<float>(x, setting), w = P == 2 ? sums[0] * a : sums[0] * (a * a);
    // an element that no window holds may be NaN
    const vi out = (setting.abs ? (vi)(a == 0) : (vi)(x < splat<vf>(setting.eps))) | (vi)(sums[0] == 0);
    const vf turned = x < 0 ? -w : w;
    return keep(setting.abs ? turned : w, ~out);
  }
};

// Rows of windows into rows of elements.
template <class T, class Map> class Spread {
 public:
  Spread(const Plan& plan, const Grid& grid, const Call& call) : g_(grid), call_(call), map_(plan, grid, call) {
    const Line &w = g_.w, &h = g_.h;
    before_ = round_up(w.kernel, LF);
    pitch_ = before_ + round_up(std::max(w.out, (w.n + w.left) / w.stride + 1), LF) + 2 * LF;
    held_ = (h.kernel + h.stride - 1) / h.stride;
    windows_.assign(held_ * K * pitch_, 0.0f);
    sums_.assign(K * pitch_, 0.0f);
    lead_ = round_up(w.left + w.stride, LF);
    wide_ = lead_ + round_up(w.n + 2 * LF * w.stride, LF);
    elements_.assign(K * wide_, 0.0f);
  }
  void plane(int64_t number) {
    const T* x = static_cast<const T*>(call_.x) + number * g_.in;
    T* dx = static_cast<T*>(call_.dx) + number * g_.in;
    map_.begin(x);
    int64_t ready = 0;
    for (int64_t r = 0; r < g_.h.n; ++r) {
      const int64_t low = g_.h.low(r), high = g_.h.high(r);
      for (ready = std::max(ready, low); ready < high; ++ready) window_row(number, ready);
      const float* sums = low + 1 == high ? row(low) : added(low, high);
      with_constant<1, 2, 3>(g_.w.stride, [&](auto S) {
        with_constant<2, 3>(g_.w.kernel, [&](auto N) { spread_row<S, N>(sums); });
      });
      finish_row(x + r * g_.w.n, dx + r * g_.w.n);
    }
  }

 private:
  static constexpr int K = Map::K;
  const Grid& g_;
  const Call& call_;
  Map map_;
  int64_t before_, pitch_, held_, lead_, wide_;
  std::vector<float> windows_, sums_, elements_;

  float* row(int64_t h) { return windows_.data() + h % held_ * K * pitch_; }
  void window_row(int64_t plane, int64_t h) {
    const int64_t at = plane * g_.out + h * g_.w.out;
    const T* grad = static_cast<const T*>(call_.grad[0]) + at;
    float* to = row(h) + before_;
    for (int64_t o = 0; o < g_.w.out; o += LF) {
      const int64_t number = std::min<int64_t>(LF, g_.w.out - o);
      vf v[K];
      map_.windows(at + o, h, o, number == LF ? load_as(grad + o) : load_part(grad + o, number), number, v);
      for (int k = 0; k < K; ++k) storeu(to + k * pitch_ + o, v[k]);
    }
  }
  const float* added(int64_t low, int64_t high) {
    for (int64_t j = 0; j < K * pitch_; j += LF) {
      vf sum{};
      for (int64_t h = low; h < high; ++h) sum = sum + loadu<vf>(row(h) + j);
      storeu(sums_.data() + j, sum);
    }
    return sums_.data();
  }
  // element q * stride + r - left is held by the windows q, q - 1, ...: those whose tap r, r + stride, ... is within the kernel
  template <int S, int N> void spread_row(const float* sums) {
    const int64_t stride = S ? S : g_.w.stride, kernel = N ? N : g_.w.kernel, last = (g_.w.n - 1 + g_.w.left) / stride;
    for (int k = 0; k < K; ++k) {
      const float* from = sums + k * pitch_ + before_;
      float* to = elements_.data() + k * wide_ + lead_ - g_.w.left;
      for (int64_t q = 0; q <= last; q += LF) {
        const auto phase_sum = [&](int64_t r) __attribute__((always_inline)) {
          vf sum = r < kernel ? loadu<vf>(from + q) : vf{};
          for (int64_t u = 1; r + u * stride < kernel; ++u) sum = sum + loadu<vf>(from + q - u);
          return sum;
        };
        if constexpr (S == 1) {
          storeu(to + q, phase_sum(0));
        } else if constexpr (S == 2) {
          vf a = phase_sum(0), b = phase_sum(1);
          interleave(a, b);
          storeu(to + 2 * q, a), storeu(to + 2 * q + LF, b);
        } else {
          for (int64_t r = 0; r < stride; ++r) {
            const vf sum = phase_sum(r);
            for (int i = 0; i < LF; ++i) to[(q + i) * stride + r] = sum[i];
          }
        }
      }
    }
  }
  void finish_row(const T* x, T* dx) const {
    const float* sums = elements_.data() + lead_;
    for (int64_t j = 0; j < g_.w.n; j += LF) {
      vf v[K];
      for (int k = 0; k < K; ++k) v[k] = loadu<vf>(sums + k * wide_ + j);
      const vf d = map_.element(Map::values ? load_until(x + j, x + g_.w.n) : vf{}, v);
      store_until(dx + j, d, dx + g_.w.n);
    }
  }
};

template <class T, class Map> void spread(const Plan& plan, const Grid& g, const Call& call, int64_t begin, int64_t end) {
  Spread<T, Map> rows(plan, g, call);
  for (int64_t plane = begin; plane < end; ++plane) rows.plane(plane);
}

}  // namespace

bool rows_weighted_gradient(const Plan& plan, const Grid& g, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return in_parallel(g.planes, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) {
      const int p = plan.op == POWER ? whole_power(call) : 0;
      if (plan.op == MEAN)
        spread<T, MeanBack<T>>(plan, g, call, begin, end);
      else if (plan.op == SOFT)
        spread<T, SoftBack<T>>(plan, g, call, begin, end);
      else if (p == 2)
        spread<T, PowerBack<T, 2>>(plan, g, call, begin, end);
      else
        spread<T, PowerBack<T, 3>>(plan, g, call, begin, end);
    });
  });
}

}  // namespace everypool
