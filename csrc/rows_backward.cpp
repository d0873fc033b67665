// Gradients of maxima of sliding windows along rows: every element looks which of its windows it has won.
#include <vector>

#include "rows.h"

namespace everypool {
namespace {

constexpr int64_t GATHERED = 16;  // windows per element; where there are more, every window looks for its element

template <class T> class Gather {
 public:
  Gather(const Grid& grid, const Call& call) : g_(grid), call_(call) {
    const Line &w = g_.w, &h = g_.h;
    before_ = round_up(w.kernel, LF);
    pitch_ = before_ + round_up(std::max(w.out, (w.n + w.left) / w.stride + 1), LF) + 2 * LF;
    held_ = (h.kernel + h.stride - 1) / h.stride;
    grads_.assign(held_ * pitch_, 0.0f);
    taps_.assign(held_ * pitch_, 0);
    lead_ = round_up(w.left + w.stride, LF);
    elements_.assign(lead_ + round_up(w.n + 2 * LF * w.stride, LF), 0.0f);
  }
  void plane(int64_t number) {
    T* dx = static_cast<T*>(call_.dx) + number * g_.in;
    int64_t ready = 0;
    for (int64_t r = 0; r < g_.h.n; ++r) {
      const int64_t low = g_.h.low(r), high = g_.h.high(r);
      for (ready = std::max(ready, low); ready < high; ++ready) window_row(number * g_.out + ready * g_.w.out, ready % held_);
      with_constant<1, 2, 3>(g_.w.stride, [&](auto S) {
        with_constant<2, 3>(g_.w.kernel, [&](auto K) { element_row<S, K>(r, low, high); });
      });
      T *to = dx + r * g_.w.n, *end = to + g_.w.n;
      for (int64_t j = 0; j < g_.w.n; j += LF) store_until(to + j, loadu<vf>(elements_.data() + lead_ + j), end);
    }
  }

 private:
  const Grid& g_;
  const Call& call_;
  int64_t before_, pitch_, held_, lead_;
  std::vector<float> grads_, elements_;  // rows of windows that may still hold elements to come; 0 around them
  std::vector<uint8_t> taps_;

  void window_row(int64_t at, int64_t slot) {
    const T* grad = static_cast<const T*>(call_.grad[0]) + at;
    float* to = grads_.data() + slot * pitch_ + before_;
    for (int64_t o = 0; o < g_.w.out; o += LF) storeu(to + o, load_until(grad + o, grad + g_.w.out));
    std::memcpy(taps_.data() + slot * pitch_ + before_, static_cast<const uint8_t*>(call_.aux[0]) + at, g_.w.out);
  }
  // element q * stride + r - left has been tap r of window q, tap r + stride of window q - 1, ...
  template <int S, int K> void element_row(int64_t row, int64_t low, int64_t high) {
    const int64_t stride = S ? S : g_.w.stride, kernel = K ? K : g_.w.kernel, last = (g_.w.n - 1 + g_.w.left) / stride;
    float* to = elements_.data() + lead_ - g_.w.left;
    for (int64_t q = 0; q <= last; q += LF) {
      const auto won_by = [&](int64_t r) __attribute__((always_inline)) {
        vf sum{};
        for (int64_t h = low; h < high; ++h) {
          const float* grad = grads_.data() + h % held_ * pitch_ + before_ + q;
          const uint8_t* tap = taps_.data() + h % held_ * pitch_ + before_ + q;
          const int32_t first = (int32_t)((row - g_.h.begin(h)) * kernel);
          for (int64_t u = 0; r + u * stride < kernel; ++u)
            sum = sum + keep(loadu<vf>(grad - u), (vi)(from_bytes(tap - u) == first + (int32_t)(r + u * stride)));
        }
        return sum;
      };
      if constexpr (S == 1) {
        storeu(to + q, won_by(0));
      } else if constexpr (S == 2) {
        vf a = won_by(0), b = won_by(1);
        interleave(a, b);
        storeu(to + 2 * q, a), storeu(to + 2 * q + LF, b);
      } else {
        for (int64_t r = 0; r < stride; ++r) {
          const vf sum = won_by(r);
          for (int i = 0; i < LF; ++i) to[(q + i) * stride + r] = sum[i];
        }
      }
    }
  }
};

// One window after the other, each to the element that has won it.
template <class T> class Scatter {
 public:
  Scatter(const Grid& grid, const Call& call) : g_(grid), call_(call), offset_(g_.h.kernel * g_.w.kernel) {
    for (int64_t t = 0; t < (int64_t)offset_.size(); ++t) offset_[t] = t / g_.w.kernel * g_.w.n + t % g_.w.kernel;
    if (!std::is_same_v<T, float>) sums_.resize(g_.in);
  }
  void plane(int64_t number) {
    T* dx = static_cast<T*>(call_.dx) + number * g_.in;
    float* sums = sums_.data();
    if constexpr (std::is_same_v<T, float>) sums = dx;
    std::fill_n(sums, g_.in, 0.0f);
    const T* grad = static_cast<const T*>(call_.grad[0]) + number * g_.out;
    const uint8_t* won = static_cast<const uint8_t*>(call_.aux[0]) + number * g_.out;
    float g[LF];
    for (int64_t h = 0; h < g_.h.out; ++h)
      for (int64_t o = 0; o < g_.w.out; o += LF) {
        const int64_t at = h * g_.w.out + o, number_here = std::min<int64_t>(LF, g_.w.out - o);
        storeu(g, load_until(grad + at, grad + (h + 1) * g_.w.out));
        float* to = sums + g_.h.begin(h) * g_.w.n + g_.w.begin(o);
        for (int64_t i = 0; i < number_here; ++i) to[offset_[won[at + i]] + i * g_.w.stride] += g[i];
      }
    if constexpr (!std::is_same_v<T, float>)
      for (int64_t j = 0; j < g_.in; j += LF) store_until(dx + j, load_until(sums + j, sums + g_.in), dx + g_.in);
  }

 private:
  const Grid& g_;
  const Call& call_;
  std::vector<int64_t> offset_;  // of a tap from the window's first element
  std::vector<float> sums_;
};

}  // namespace

bool rows_winners_gradient(const Plan& plan, const Grid& g, const Call& call) {
  const int64_t windows = ((g.h.kernel + g.h.stride - 1) / g.h.stride) * ((g.w.kernel + g.w.stride - 1) / g.w.stride);
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return in_parallel(g.planes, g.planes * g.in >= ROWS_SERIAL, [&](int64_t begin, int64_t end) {
      if (windows > GATHERED) {
        Scatter<T> scatter(g, call);
        for (int64_t plane = begin; plane < end; ++plane) scatter.plane(plane);
      } else {
        Gather<T> gather(g, call);
        for (int64_t plane = begin; plane < end; ++plane) gather.plane(plane);
      }
    });
  });
}

}  // namespace everypool
