// Small windows where channels lie side by side: vectors run along the channels, and nothing is copied.
#include <algorithm>
#include <vector>

#include "each.h"
#include "special.h"
#include "work.h"

namespace everypool {
namespace {

constexpr int MOST_HOLDERS = 64;   // windows that hold one element

// The windows of an axis, and those that hold element i: low[i] to high[i] - 1.
struct Holders {
  std::vector<Window> windows;
  std::vector<int64_t> low, high;

  explicit Holders(const Axis& a) : windows(a.out), low(a.n), high(a.n) {
    Cursor window(a, 0, 0);
    for (Window& w : windows) w = *window, window.next();
    for (int64_t i = 0, l = 0, h = 0; i < a.n; ++i) {
      while (l < a.out && windows[l].start + windows[l].count <= i) ++l;
      while (h < a.out && windows[h].start <= i) ++h;
      low[i] = std::min(l, h), high[i] = h;
    }
  }
};

template <class T> struct Pixels {
  const Plan& plan;
  const Call& call;
  const Fold& f = plan.folds[0];
  const int64_t C = plan.C, D = f.axis[0].n, H = f.axis[1].n, W = f.axis[2].n;
  const Divide<float> divide{plan, f, 0};

  // f(channel) for every vector; the last one is moved back until it fits
  template <class F> EP_INLINE void each_vector(const F& visit) const {
    for (int64_t c = 0; c < C; c += LF) visit(std::min(c, C - LF));
  }

  // ---- forward: row (sample, d, h) of the results ---------------------------------------------------------------------------

  template <int K> EP_INLINE vf largest_of(const T* x, const Box& box) const {
    vf top = splat<vf>(lowest<float>());
    vi odd{};
    walk<K>(box, [&](int64_t at, int64_t) __attribute__((always_inline)) {
      const vf v = load_as(x + at);
      odd |= unordered(v, v);
      top = largest(v, top);
    });
    return (vf)((vi)top | odd);
  }
  template <int K> EP_INLINE vf winner_of(const T* x, const Box& box, vi& won) const {
    vf top = load_as(x + box.start);
    won = vi{};
    walk<K>(box, [&](int64_t at, int64_t t) __attribute__((always_inline)) {
      if (t == 0) return;
      const vf v = load_as(x + at);
      const vi better = (vi)(v > top) | unordered(v, v);
      top = better ? v : top;
      won = better ? splat<vi>((int32_t)t) : won;
    });
    return top;
  }
  template <int K> EP_INLINE vf mean_of(const T* x, const Box& box, Wide divisor, vf by) const {
    if (box.d * box.h * box.w <= FLOAT_TAPS) {
      vf sum{};
      walk<K>(box, [&](int64_t at, int64_t) __attribute__((always_inline)) { sum = sum + load_as(x + at); });
      const vf y = sum * by;
      if (!any(infinite(y))) return y;  // else the sum may have been too large for a float
    }
    Wide sum = Lane<float>::zero();
    walk<K>(box, [&](int64_t at, int64_t) __attribute__((always_inline)) { sum = sum + widened(load_as(x + at)); });
    return narrowed(sum / divisor);
  }
  template <int K> void forward_row(int64_t row) const {
    const int64_t out_h = f.axis[1].out, out_w = f.axis[2].out, d = row / out_h % f.axis[0].out, h = row % out_h;
    const T* x = static_cast<const T*>(call.x) + row / (out_h * f.axis[0].out) * f.in * C;
    T* y = static_cast<T*>(call.y[0]) + row * out_w * C;
    uint8_t* won = call.aux[0] ? static_cast<uint8_t*>(call.aux[0]) + row * out_w * C : nullptr;
    const Window deep = f.axis[0].at(d, 0), tall = f.axis[1].at(h, 0);
    Place p{0, d, h, 0, deep.start, tall.start, 0, deep.count, tall.count, 0};
    Cursor flat(f.axis[2], 0, 0);
    for (p.w = 0; p.w < out_w; ++p.w, y += C, won += won ? C : 0, flat.next()) {
      p.sw = (*flat).start, p.cw = (*flat).count;
      Box box{((p.sd * H + p.sh) * W + p.sw) * C, H * W * C, W * C, C, p.cd, p.ch, p.cw};
      const int64_t all = p.cd * p.ch * p.cw, start = box.start;
      const Wide divisor = plan.op == MEAN ? divide(p, all, splat<vf>(all)) : Lane<float>::all(1);
      const vf by = narrowed(Lane<float>::all(1) / divisor);
      each_vector([&](int64_t c) __attribute__((always_inline)) {
        box.start = start + c;
        vi tap;
        if (call.take) {
          store_as(y + c, taken<K>(x, box, load_index<uint8_t, vi>(won, c)));
        } else if (plan.op == MEAN) {
          store_as(y + c, mean_of<K>(x, box, divisor, by));
        } else if (!call.save) {
          store_as(y + c, largest_of<K>(x, box));
        } else {
          store_as(y + c, winner_of<K>(x, box, tap));
          store_index<uint8_t>(won, c, tap);
        }
      });
    }
  }
  void forward_rows(int64_t begin, int64_t end) const {
    const int64_t h = f.axis[1].most, w = f.axis[2].most;
    with_constant<2, 3>(h == w ? h : 0, [&](auto K) {
      for (int64_t row = begin; row < end; ++row) forward_row<K>(row);
    });
  }
  template <int K> EP_INLINE vf taken(const T* x, const Box& box, vi won) const {
    vf y{};
    walk<K>(box, [&](int64_t at, int64_t t) __attribute__((always_inline)) {
      y = won == (int32_t)t ? load_as(x + at) : y;
    });
    return y;
  }

  // ---- backward: row (sample, d, h) of the elements ---------------------------------------------------------------------------

  struct Holder {
    int64_t at;    // of its gradient
    int32_t tap;   // of the element in it
    float scale;
  };
  struct Reach {
    Holders d, h, w;
  };

  int holders_of(int64_t d, int64_t h, int64_t w, const Reach& reach, Holder* to) const {
    int number = 0;
    for (int64_t od = reach.d.low[d]; od < reach.d.high[d]; ++od)
      for (int64_t oh = reach.h.low[h]; oh < reach.h.high[h]; ++oh)
        for (int64_t ow = reach.w.low[w]; ow < reach.w.high[w]; ++ow) {
          const Window deep = reach.d.windows[od], tall = reach.h.windows[oh], flat = reach.w.windows[ow];
          const Place p{0, od, oh, ow, deep.start, tall.start, flat.start, deep.count, tall.count, flat.count};
          const int64_t all = p.cd * p.ch * p.cw, tap = ((d - p.sd) * p.ch + h - p.sh) * p.cw + w - p.sw;
          const float scale = plan.op == MEAN ? (float)(1 / divide(p, all, splat<vf>(all)).lo[0]) : 0.0f;
          to[number++] = {((od * f.axis[1].out + oh) * f.axis[2].out + ow) * C, (int32_t)tap, scale};
        }
    return number;
  }
  void backward_row(int64_t row, const Reach& reach) const {
    const int64_t sample = row / (D * H), d = row / H % D, h = row % H;
    const T* grad = static_cast<const T*>(call.grad[0]) + sample * f.out * C;
    const uint8_t* won = static_cast<const uint8_t*>(call.aux[0]) + (call.aux[0] ? sample * f.out * C : 0);
    T* dx = static_cast<T*>(call.dx) + row * W * C;
    Holder holder[MOST_HOLDERS];
    for (int64_t w = 0; w < W; ++w, dx += C) {
      const int number = holders_of(d, h, w, reach, holder);
      each_vector([&](int64_t c) __attribute__((always_inline)) {
        vf sum{};
        for (int i = 0; i < number; ++i) {
          const vf g = load_as(grad + holder[i].at + c);
          if (plan.op == MEAN)
            sum = sum + g * holder[i].scale;
          else
            sum = sum + keep(g, (vi)(load_index<uint8_t, vi>(won, holder[i].at + c) == holder[i].tap));
        }
        store_as(dx + c, sum);
      });
    }
  }
};

bool run(const Plan& plan, const Call& call, bool back) {
  const Axis* a = plan.folds[0].axis;
  const bool worth_it = plan.N * plan.C * plan.folds[0].in >= SERIAL;
  return with_type(plan.type, [&](auto type) {
    const Pixels<decltype(type)> pixels{plan, call};
    if (!back) {
      return in_parallel(plan.N * a[0].out * a[1].out, worth_it, [&](int64_t begin, int64_t end) { pixels.forward_rows(begin, end); });
    }
    const typename Pixels<decltype(type)>::Reach reach{Holders(a[0]), Holders(a[1]), Holders(a[2])};
    return in_parallel(plan.N * a[0].n * a[1].n, worth_it, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) pixels.backward_row(row, reach);
    });
  });
}

}  // namespace

bool pixels_suits(const Plan& plan, bool) {
  if (!plan.pixels || plan.C < LF || plan.mask_channels || plan.index != NO_INDEX || plan.last || plan.folds.size() > 1) return false;
  if (plan.op != MEAN && plan.op != MAX) return false;
  if (plan.type != FLOAT32 && plan.type != BFLOAT16 && plan.type != FLOAT16) return false;
  const Fold& f = plan.folds[0];
  if (f.method != DIRECT || f.taps > 256) return false;
  int64_t holders = 1;
  for (const Axis& a : f.axis) {
    if (a.kind == LISTED || a.step > 1 || a.run || a.may_be_empty) return false;  // else windows begin and end one after the other
    holders *= a.most_holders();
  }
  return holders <= MOST_HOLDERS;
}

int64_t pixels_aux_bytes(const Plan& plan, size_t fold) { return plan.op == MAX ? plan.N * plan.C * plan.folds[fold].out : 0; }

bool pixels_forward(const Plan& plan, const Call& call) { return run(plan, call, false); }
bool pixels_backward(const Plan& plan, const Call& call) { return run(plan, call, true); }

}  // namespace everypool
