// The whole plane as one window where channels lie side by side: position after position is folded into a row of channels.
#include <algorithm>

#include "globals.h"

namespace everypool {
namespace {

constexpr int64_t CHANNELS = 512;  // folded at once: what is kept of them stays in the first cache

template <class T> struct Pixels {
  const Plan& plan;
  const Call& call;
  const int64_t n = plan.folds[0].in, C = plan.C, chunks = (C + CHANNELS - 1) / CHANNELS;
  const double divisor = plan.divisor == FIXED ? plan.fixed : double(n);

  // f(channel) for every vector of a chunk; the last one is moved back until it fits
  template <class F> EP_INLINE void each_vector(int64_t chunk, const F& f) const {
    const int64_t end = std::min((chunk + 1) * CHANNELS, C);
    for (int64_t c = chunk * CHANNELS; c < end; c += LF) f(std::min(c, C - LF));
  }
  // kept[k] = join(kept[k], tree of some positions) for every vector k of a chunk, until all positions are seen
  template <class Op, class Kept, class Join> void fold(int64_t unit, Kept* kept, const Join& join) const {
    const T* x = static_cast<const T*>(call.x) + unit / chunks * n * C;
    const auto rows = [&](auto M, int64_t p) {
      int k = 0;
      each_vector(unit % chunks, [&](int64_t c) {
        Op op;
        const vf v = tree<M>(x + p * C + c, C, op);
        join(kept[k++], v, op);
      });
    };
    int64_t p = 0;
    for (; p + MOST_VECTORS <= n; p += MOST_VECTORS) rows(std::integral_constant<int, MOST_VECTORS>{}, p);
    for (; p < n; ++p) rows(std::integral_constant<int, 1>{}, p);
  }
  template <class Kept, class Value> void store(int64_t unit, const Kept* kept, const Value& value) const {
    T* y = static_cast<T*>(call.y[0]) + unit / chunks * C;
    int k = 0;
    each_vector(unit % chunks, [&](int64_t c) { store_as(y + c, value(kept[k++])); });
  }
  // false: a sum of eight may have been too large for a float
  bool mean(int64_t unit) const {
    Wide kept[CHANNELS / LF + 1];
    std::fill_n(kept, CHANNELS / LF + 1, Lane<float>::zero());
    fold<TotalOf>(unit, kept, [](Wide& total, vf v, TotalOf) { total = total + widened(v); });
    vi bad{};
    store(unit, kept, [&](Wide total) {
      const vf y = narrowed(total / Lane<float>::all(divisor));
      bad |= ~(vi)(y - y == 0);
      return y;
    });
    return !any(bad);
  }
  void exact_mean(int64_t unit) const {
    Wide kept[CHANNELS / LF + 1];
    std::fill_n(kept, CHANNELS / LF + 1, Lane<float>::zero());
    const T* x = static_cast<const T*>(call.x) + unit / chunks * n * C;
    for (int64_t p = 0; p < n; ++p) {
      int k = 0;
      each_vector(unit % chunks, [&](int64_t c) {
        kept[k] = kept[k] + widened(load_as(x + p * C + c));
        ++k;
      });
    }
    store(unit, kept, [&](Wide total) { return narrowed(total / Lane<float>::all(divisor)); });
  }
  void maximum(int64_t unit) const {
    vf kept[CHANNELS / LF + 1];
    std::fill_n(kept, CHANNELS / LF + 1, splat<vf>(lowest<float>()));
    fold<LargestOf>(unit, kept, [](vf& top, vf v, LargestOf op) {
      top = largest(v, top);  // keeps a NaN that is there already
      top = (vf)((vi)top | op.odd);
    });
    store(unit, kept, [](vf top) { return top; });
  }
  void forward(int64_t unit) const {
    if (plan.op == MAX)
      maximum(unit);
    else if (!mean(unit))
      exact_mean(unit);
  }
  void backward(int64_t unit) const {
    T row[CHANNELS];
    const int64_t first = unit % chunks * CHANNELS, number = std::min(CHANNELS, C - first);
    const T* grad = static_cast<const T*>(call.grad[0]) + unit / chunks * C + first;
    for (int64_t c = 0; c < number; c += LF) {
      const int64_t part = std::min<int64_t>(LF, number - c);
      store_part(row + c, narrowed(widened(load_part(grad + c, part)) / Lane<float>::all(divisor)), part);
    }
    T* dx = static_cast<T*>(call.dx) + unit / chunks * n * C + first;
    for (int64_t p = 0; p < n; ++p) std::memcpy((void*)(dx + p * C), row, sizeof(T) * number);
  }
};

bool run(const Plan& plan, const Call& call, bool back) {
  return with_type(plan.type, [&](auto type) {
    const Pixels<decltype(type)> pixels{plan, call};
    return in_parallel(plan.N * pixels.chunks, plan.N * plan.C * pixels.n >= SERIAL, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) back ? pixels.backward(unit) : pixels.forward(unit);
    });
  });
}

}  // namespace

bool global_pixels_forward(const Plan& plan, const Call& call) { return run(plan, call, false); }
bool global_pixels_backward(const Plan& plan, const Call& call) { return run(plan, call, true); }

}  // namespace everypool
