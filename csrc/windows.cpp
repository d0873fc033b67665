#include "windows.h"

#include "each.h"

namespace everypool {
namespace {

template <class C, class Op, bool MASK, int K, class I>
bool run_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* settings, bool save) {
  using V = typename Lane<C>::V;
  using M = typename Bits<C>::M;
  constexpr int L = Lane<C>::L;
  M bad{};
  const Divide<C> divide{plan, f, sample};
  const int64_t W = f.axis[2].n, H = f.axis[1].n;
  const M* mask = static_cast<const M*>(v.mask);
  each_window(f, sample, v.low, v.high, [&](const Place& p) __attribute__((always_inline)) {
    const int64_t all = p.cd * p.ch * p.cw;
    const int64_t at = v.x0;
    Box box{(((p.sd * H + p.sh) * W + p.sw) - at) * v.xs, f.axis[0].step * H * W * v.xs, f.axis[1].step * W * v.xs,
            f.axis[2].step * v.xs, p.cd, p.ch, p.cw};
    for (int g = 0; g < v.groups; ++g, box.start += L) {
      C* y = v.y + (p.o - v.y0) * v.ys + g * L;
      const int64_t kept = p.o * v.as + g * L;
      if (all == 0) {
        storeu(y, V{});
        if constexpr (!std::is_void_v<I>)
          if (v.won && !Op::takes) store_index<I>(v.won, kept, splat<M>(-1));
        if (v.position)
          for (int i = 0; i < v.planes; ++i) v.position[i][p.o * v.ps] = -1;
        if (save)
          for (int c = 0; c < Op::aux; ++c) storeu(v.aux + c * v.component + kept, splat<V>(1));
        continue;
      }
      Op op;
      op.begin(settings[g]);
      if constexpr (Op::takes) op.i = load_index<I, M>(v.won, kept);
      V number = splat<V>(all);
      if constexpr (MASK) {
        M seen{};
        walk<K>(box, [&](int64_t at, int64_t t) __attribute__((always_inline)) {
          M m = mask[at / L];
          seen -= m;
          op.template tap<true>(loadu<V>(v.x + at), splat<M>(t), m);
        });
        number = __builtin_convertvector(seen, V);
      } else {
        walk<K>(box, [&](int64_t at, int64_t t) __attribute__((always_inline)) {
          op.template tap<false>(loadu<V>(v.x + at), splat<M>(t), M{});
        });
      }
      if constexpr (Op::two_passes) {
        op.between();
        walk<K>(box, [&](int64_t at, int64_t) __attribute__((always_inline)) {
          if constexpr (MASK)
            op.template tap2<true>(loadu<V>(v.x + at), mask[at / L]);
          else
            op.template tap2<false>(loadu<V>(v.x + at), M{});
        });
      }
      V few[3];
      M wrong{};
      Seen<C> seen{MASK ? largest(number, splat<V>(1)) : number, divide(p, all, number)};
      V value = op.finish(settings[g], seen, few, wrong);
      if constexpr (MASK) {
        M some = (M)(number > 0);
        value = keep(value, some);
        wrong &= some;
        for (int c = 0; c < Op::aux; ++c) few[c] = some ? few[c] : splat<V>(1);
      }
      bad |= wrong;
      storeu(y, value);
      if (save)
        for (int c = 0; c < Op::aux; ++c) storeu(v.aux + c * v.component + kept, few[c]);
      if constexpr (!std::is_void_v<I> && !Op::takes) {
        if (v.won) store_index<I>(v.won, kept, op.i);
        if (v.position)
          for (int i = 0; i < v.planes; ++i) {
            int64_t t = op.i[i];
            int64_t place = ((p.sd + t / (p.ch * p.cw) * f.axis[0].step) * H + p.sh + t / p.cw % p.ch * f.axis[1].step) * W +
                            p.sw + t % p.cw * f.axis[2].step;
            v.position[i][p.o * v.ps] = t < 0 ? -1 : place;
          }
      }
    }
  });
  return any(bad);
}

template <class C, class G, bool MASK, int K, class I>
void run_backward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* settings) {
  using V = typename Lane<C>::V;
  using M = typename Bits<C>::M;
  using W_ = typename Lane<C>::W;
  constexpr int L = Lane<C>::L;
  const Divide<C> divide{plan, f, sample};
  const int64_t W = f.axis[2].n, H = f.axis[1].n;
  const M* mask = static_cast<const M*>(v.mask);
  const int band = f.band_axis;
  each_window(f, sample, v.low, v.high, [&](Place p) __attribute__((always_inline)) {
    const int64_t all = p.cd * p.ch * p.cw;
    if (all == 0) return;
    // only the taps within the band; those before it still have numbers
    int64_t* const count = band == 0 ? &p.cd : band == 1 ? &p.ch : &p.cw;
    int64_t* const start = band == 0 ? &p.sd : band == 1 ? &p.sh : &p.sw;
    const int64_t step = f.axis[band].step, ch = p.ch, cw = p.cw;
    int64_t before = *start < v.from ? (v.from - *start + step - 1) / step : 0;
    int64_t end = *start >= v.to ? 0 : (v.to - *start + step - 1) / step;
    const bool whole = before == 0 && end >= *count;
    end = end < *count ? end : *count;
    if (before >= end) return;
    const int64_t full[3] = {p.cd, p.ch, p.cw};
    *start += before * step, *count = end - before;
    Box box{(((p.sd * H + p.sh) * W + p.sw) - v.x0) * v.xs, f.axis[0].step * H * W * v.xs, f.axis[1].step * W * v.xs,
            f.axis[2].step * v.xs, p.cd, p.ch, p.cw};
    for (int g = 0; g < v.groups; ++g, box.start += L) {
      V grad = loadu<V>(v.y + (p.o - v.y0) * v.ys + g * L);
      const int64_t kept = p.o * v.as + g * L;
      V number = splat<V>(all);
      if constexpr (MASK && !G::index) {
        Box window = box;
        window.d = full[0], window.h = full[1], window.w = full[2];
        const int64_t back = before * (band == 0 ? box.plane : band == 1 ? box.row : box.step);
        window.start -= back;
        M seen{};
        walk<0>(window, [&](int64_t at, int64_t) { seen -= mask[at / L]; });
        number = __builtin_convertvector(seen, V);
        grad = keep(grad, (M)(number > 0));
      }
      V few[3];
      for (int c = 0; c < G::aux; ++c) few[c] = loadu<V>(v.aux + c * v.component + kept);
      M won{};
      if constexpr (G::index) won = load_index<I, M>(v.won, kept);
      Seen<C> seen{MASK ? largest(number, splat<V>(1)) : number, divide(p, all, number)};
      G op;
      op.begin(settings[g], seen, grad, few, won);
      const auto add = [&](int64_t at, int64_t t) __attribute__((always_inline)) {
        V x{};
        if constexpr (G::values) x = loadu<V>(v.x + at);
        if constexpr (MASK) {
          M m = mask[at / L];
          if constexpr (G::values) x = keep(x, m);  // what is masked may be NaN
          storeu(v.dx + at, loadu<V>(v.dx + at) + keep(op.tap(x, splat<M>(t), m), m));
        } else {
          storeu(v.dx + at, loadu<V>(v.dx + at) + op.tap(x, splat<M>(t), splat<M>(-1)));
        }
      };
      if (whole) {
        walk<K>(box, add);
      } else {
        for (int64_t i = 0; i < p.cd; ++i)
          for (int64_t j = 0; j < p.ch; ++j)
            for (int64_t k = 0; k < p.cw; ++k) {
              int64_t t = band == 0 ? ((i + before) * ch + j) * cw + k
                                    : band == 1 ? (i * full[1] + j + before) * cw + k : (i * ch + j) * full[2] + k + before;
              add(box.start + i * box.plane + j * box.row + k * box.step, t);
            }
      }
      if (v.slope) {
        W_ s = op.slope();
        double parts[L];
        std::memcpy(parts, &s, sizeof parts);
        for (int i = 0; i < L; ++i) v.slope[g * L + i] += parts[i];
      }
    }
  });
}

// the template arguments, one after the other
template <class C, class Op, class I>
bool with_shape(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* s, bool save) {
  if (v.mask) return run_forward<C, Op, true, 0, I>(plan, f, sample, v, s, save);
  if constexpr (std::is_same_v<C, float>) {
    const int64_t h = f.axis[1].most, w = f.axis[2].most;
    if (h == 2 && w == 2) return run_forward<C, Op, false, 2, I>(plan, f, sample, v, s, save);
    if (h == 3 && w == 3) return run_forward<C, Op, false, 3, I>(plan, f, sample, v, s, save);
  }
  return run_forward<C, Op, false, 0, I>(plan, f, sample, v, s, save);
}
template <class C, class G, class I = uint8_t>
void with_shape_back(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* s) {
  if (v.mask) return run_backward<C, G, true, 0, I>(plan, f, sample, v, s);
  if constexpr (std::is_same_v<C, float>) {
    const int64_t h = f.axis[1].most, w = f.axis[2].most;
    if (h == 2 && w == 2) return run_backward<C, G, false, 2, I>(plan, f, sample, v, s);
    if (h == 3 && w == 3) return run_backward<C, G, false, 3, I>(plan, f, sample, v, s);
  }
  run_backward<C, G, false, 0, I>(plan, f, sample, v, s);
}

template <class C, bool LAST>
bool max_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* s, bool save, bool nans) {
  constexpr bool floats = !std::is_same_v<C, int64_t>;
  if (v.take) {
    if (plan.wide_index) return with_shape<C, TakeOp<C>, int32_t>(plan, f, sample, v, s, save);
    return with_shape<C, TakeOp<C>, uint8_t>(plan, f, sample, v, s, save);
  }
  if (v.won || v.position) {
    if (plan.wide_index) return with_shape<C, MaxOp<C, true, LAST, floats>, int32_t>(plan, f, sample, v, s, save);
    return with_shape<C, MaxOp<C, true, LAST, floats>, uint8_t>(plan, f, sample, v, s, save);
  }
  if (floats && nans) return with_shape<C, MaxOp<C, false, false, floats>, void>(plan, f, sample, v, s, save);
  return with_shape<C, MaxOp<C, false, false, false>, void>(plan, f, sample, v, s, save);
}

bool same_power(const Setting<float>* s, int groups, float p) {
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < LF; ++i)
      if (s[g].p[i] != p) return false;
  return true;
}

}  // namespace

template <class C>
bool windows_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* s, bool save, bool nans) {
  if (plan.op == MAX) {
    if (plan.last) return max_forward<C, true>(plan, f, sample, v, s, save, nans);
    return max_forward<C, false>(plan, f, sample, v, s, save, nans);
  }
  if constexpr (!std::is_same_v<C, int64_t>) {
    switch (plan.op) {
      case MEAN:
        return with_shape<C, MeanOp<C>, void>(plan, f, sample, v, s, save);
      case POWER:
        if constexpr (std::is_same_v<C, float>) {
          if (same_power(s, v.groups, 1)) return with_shape<C, PowerSumOp<C, 1>, void>(plan, f, sample, v, s, save);
          if (same_power(s, v.groups, 2)) return with_shape<C, PowerSumOp<C, 2>, void>(plan, f, sample, v, s, save);
          if (same_power(s, v.groups, 3)) return with_shape<C, PowerSumOp<C, 3>, void>(plan, f, sample, v, s, save);
        }
        return with_shape<C, PowerOp<C>, void>(plan, f, sample, v, s, save);
      case SOFT:
        return with_shape<C, SoftOp<C>, void>(plan, f, sample, v, s, save);
      default:
        return with_shape<C, LogSumExpOp<C>, void>(plan, f, sample, v, s, save);
    }
  }
  return true;
}

template <class C>
void windows_backward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>* s) {
  if constexpr (!std::is_same_v<C, int64_t>) {
    switch (plan.op) {
      case MAX:
        if (plan.wide_index) return with_shape_back<C, MaxGrad<C>, int32_t>(plan, f, sample, v, s);
        return with_shape_back<C, MaxGrad<C>, uint8_t>(plan, f, sample, v, s);
      case MEAN:
        return with_shape_back<C, MeanGrad<C>>(plan, f, sample, v, s);
      case POWER:
        if constexpr (std::is_same_v<C, float>) {
          const bool one = same_power(s, v.groups, 1), two = same_power(s, v.groups, 2), three = same_power(s, v.groups, 3);
          if (v.slope && one) return with_shape_back<C, PowerGrad<C, 1, true>>(plan, f, sample, v, s);
          if (v.slope && two) return with_shape_back<C, PowerGrad<C, 2, true>>(plan, f, sample, v, s);
          if (v.slope && three) return with_shape_back<C, PowerGrad<C, 3, true>>(plan, f, sample, v, s);
          if (!v.slope && one) return with_shape_back<C, PowerGrad<C, 1, false>>(plan, f, sample, v, s);
          if (!v.slope && two) return with_shape_back<C, PowerGrad<C, 2, false>>(plan, f, sample, v, s);
          if (!v.slope && three) return with_shape_back<C, PowerGrad<C, 3, false>>(plan, f, sample, v, s);
        }
        if (v.slope) return with_shape_back<C, PowerGrad<C, 0, true>>(plan, f, sample, v, s);
        return with_shape_back<C, PowerGrad<C, 0, false>>(plan, f, sample, v, s);
      case SOFT:
        if (v.slope) return with_shape_back<C, SoftGrad<C, true>>(plan, f, sample, v, s);
        return with_shape_back<C, SoftGrad<C, false>>(plan, f, sample, v, s);
      default:
        if (v.slope) return with_shape_back<C, LogSumExpGrad<C, true>>(plan, f, sample, v, s);
        return with_shape_back<C, LogSumExpGrad<C, false>>(plan, f, sample, v, s);
    }
  }
}

template bool windows_forward<float>(const Plan&, const Fold&, int64_t, const View<float>&, const Setting<float>*, bool, bool);
template bool windows_forward<double>(const Plan&, const Fold&, int64_t, const View<double>&, const Setting<double>*, bool, bool);
template bool windows_forward<int64_t>(const Plan&, const Fold&, int64_t, const View<int64_t>&, const Setting<int64_t>*, bool, bool);
template void windows_backward<float>(const Plan&, const Fold&, int64_t, const View<float>&, const Setting<float>*);
template void windows_backward<double>(const Plan&, const Fold&, int64_t, const View<double>&, const Setting<double>*);
template void windows_backward<int64_t>(const Plan&, const Fold&, int64_t, const View<int64_t>&, const Setting<int64_t>*);

}  // namespace everypool
