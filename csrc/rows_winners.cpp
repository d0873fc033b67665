// Maxima of sliding windows along rows, with the number of the tap that has won: down the columns first, then along each row.
#include "rows.h"

namespace everypool {
namespace {

constexpr int32_t NOBODY = 1 << 20;  // comes after every tap

template <class T> class Winners {
 public:
  Winners(const Grid& grid, const Call& call, const Units& units)
      : g_(grid), units_(units), x_(static_cast<const T*>(call.x)), x_end_(x_ + grid.planes * grid.in),
        y_(static_cast<T*>(call.y[0])), won_(static_cast<uint8_t*>(call.aux[0])) {
    const Line& w = g_.w;
    columns_ = w.out;
    if (w.out * w.stride > 2 * ROWS_WIDE) columns_ = round_up(std::max<int64_t>((ROWS_WIDE - w.kernel) / w.stride, 1), LF);
    pitch_ = round_up(round_up(w.left, LF) + (columns_ + LF) * w.stride + w.kernel, LF) + LF;
    lines_ = std::min(std::max<int64_t>(ROWS_TILE / (pitch_ * 8), 1), g_.h.out);
    top_ = static_cast<float*>(memory_.take(lines_ * pitch_ * 8));
    tap_ = reinterpret_cast<int32_t*>(top_ + lines_ * pitch_);
    std::fill_n(top_, lines_ * pitch_, lowest<float>());
    std::fill_n(tap_, lines_ * pitch_, NOBODY);
  }
  void run(int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      plane_ = x_ + units_.plane(unit) * g_.in;
      out_ = y_ + units_.plane(unit) * g_.out, taps_ = won_ + units_.plane(unit) * g_.out;
      const int64_t low = units_.low(unit), high = units_.high(unit);
      nan_ = vi{};
      for (int64_t h = low; h < high; h += lines_)
        for (int64_t c = 0; c < g_.w.out; c += columns_) tile(h, std::min(h + lines_, high), c, std::min(c + columns_, g_.w.out));
      if (any(nan_)) define(low, high);
    }
  }

 private:
  const Grid& g_;
  const Units& units_;
  const T *x_, *x_end_;
  T* y_;
  uint8_t* won_;
  int64_t columns_, pitch_, lines_;
  Scratch memory_;
  float* top_;     // of the columns, row after row
  int32_t* tap_;   // the first tap of the row that has won
  const T* plane_ = nullptr;
  T* out_ = nullptr;
  uint8_t* taps_ = nullptr;
  vi nan_{};

  void tile(int64_t low, int64_t high, int64_t left, int64_t right) {
    const Line& w = g_.w;
    const Span s(w.begin(left), (right - left - 1) * w.stride + w.kernel, w.n, w.left);
    for (int64_t h = low; h < high; ++h) column_tops(h, s, (h - low) * pitch_);
    s.fill(top_, pitch_, high - low, splat<vf>(lowest<float>()), splat<vf>(lowest<float>()), [](float* p, vf v) { storeu(p, v); });
    s.fill(tap_, pitch_, high - low, splat<vi>(NOBODY), splat<vi>(NOBODY), [](int32_t* p, vi v) { storeu(p, v); });
    with_constant<1, 2, 3>(w.stride, [&](auto S) {
      with_constant<2, 3>(w.kernel, [&](auto K) {
        for (int64_t h = low; h < high; ++h) row_tops<S, K>((h - low) * pitch_ + s.first, right - left, h * w.out + left);
      });
    });
  }
  void column_tops(int64_t h, const Span& s, int64_t at) {
    const int64_t first = g_.h.first(h), end = g_.h.end(h), W = g_.w.n, count = s.to - s.from;
    const int32_t before = (int32_t)((first - g_.h.begin(h)) * g_.w.kernel);
    const T* row = plane_ + first * W + s.from;
    const T* const last = row + (end - 1 - first) * W + count;
    float* top = top_ + at + s.lead;
    int32_t* tap = tap_ + at + s.lead;
    vi nan{};
    const auto step = [&](int64_t j, const auto& load) __attribute__((always_inline)) {
      vf v = load(row + j);
      vi won = splat<vi>(before);
      nan |= unordered(v, v);
      for (int64_t r = 1; r < end - first; ++r) {
        const vf x = load(row + r * W + j);
        const vi better = (vi)(x > v);
        nan |= unordered(x, x);
        v = better ? x : v;
        won = better ? splat<vi>(before + (int32_t)(r * g_.w.kernel)) : won;
      }
      storeu(top + j, v), storeu(tap + j, won);
    };
    int64_t j = 0;
    for (; j + LF <= count; j += LF) step(j, [](const T* p) { return load_as(p); });
    if (j < count) {  // what follows the row may be another, but not beyond the last
      if (last - count + j + LF <= x_end_)
        step(j, [](const T* p) { return load_as(p); });
      else
        step(j, [&](const T* p) { return load_part(p, count - j); });
    }
    nan_ |= nan;
  }
  // of equal columns the one with the earlier row wins, then the one on the left
  template <int S, int K> void row_tops(int64_t at, int64_t count, int64_t to) {
    const int64_t stride = S ? S : g_.w.stride, kernel = K ? K : g_.w.kernel;
    T *y = out_ + to, *end = y + count;
    uint8_t* won = taps_ + to;
    for (int64_t o = 0; o < count; o += LF) {
      const float* top = top_ + at + o * stride;
      const int32_t* tap = tap_ + at + o * stride;
      vf v = strided<S, vf>(top, stride);
      vi best = strided<S, vi>(tap, stride);
      for (int64_t t = 1; t < kernel; ++t) {
        const vf x = strided<S, vf>(top + t, stride);
        const vi number = strided<S, vi>(tap + t, stride) + (int32_t)t;
        const vi better = (vi)(x > v) | ((vi)(x == v) & (vi)(number < best));
        v = better ? x : v;
        best = better ? number : best;
      }
      store_until(y + o, v, end);
      if (o + LF <= count)
        to_bytes(won + o, best);
      else
        for (int i = 0; i < count - o; ++i) won[o + i] = (uint8_t)best[i];
    }
  }
  // where there is NaN: the last one wins
  void define(int64_t low, int64_t high) {
    for (int64_t h = low; h < high; ++h)
      for (int64_t o = 0; o < g_.w.out; ++o) {
        float most = 0;
        int64_t won = -1;
        for (int64_t r = g_.h.first(h); r < g_.h.end(h); ++r)
          for (int64_t c = g_.w.first(o); c < g_.w.end(o); ++c) {
            const float v = value(plane_ + r * g_.w.n + c);
            if (won >= 0 && !(v > most || v != v)) continue;
            most = v, won = (r - g_.h.begin(h)) * g_.w.kernel + c - g_.w.begin(o);
          }
        store_part(out_ + h * g_.w.out + o, splat<vf>(most), 1);
        taps_[h * g_.w.out + o] = (uint8_t)won;
      }
  }
};

}  // namespace

bool rows_winners(const Plan& plan, const Grid& g, const Call& call) {
  const Units units(g.planes, g.h.out, g.w.n * g.h.stride);
  return with_type(plan.type, [&](auto type) {
    return in_parallel(units.number, g.planes * g.in >= ROWS_SERIAL, [&](int64_t begin, int64_t end) {
      Winners<decltype(type)>(g, call, units).run(begin, end);
    });
  });
}

bool rows_take(const Plan& plan, const Grid& g, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return in_parallel(g.planes * g.h.out, g.planes * g.in >= ROWS_SERIAL, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(call.x) + row / g.h.out * g.in;
        const uint8_t* won = static_cast<const uint8_t*>(call.aux[0]) + row * g.w.out;
        T* y = static_cast<T*>(call.y[0]) + row * g.w.out;
        for (int64_t o = 0; o < g.w.out; ++o)
          y[o] = x[(g.h.begin(row % g.h.out) + won[o] / g.w.kernel) * g.w.n + g.w.begin(o) + won[o] % g.w.kernel];
      }
    });
  });
}

}  // namespace everypool
