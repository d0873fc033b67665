// The whole plane as one window. Vectors run along the planes; a group of as many planes as a vector has lanes shares its
// horizontal steps: what the lanes have found of plane i goes to lane i, and so do the elements that do not fill a vector.
#include <algorithm>
#include <atomic>

#include "globals.h"
#include "ops.h"
#include "special.h"

namespace everypool {
namespace {

// ---- lanes of a group ----------------------------------------------------------------------------------------------------

template <class T> using Row = T*[LF];  // where each plane of a group begins

EP_INLINE vf column(const float* const* planes, int64_t at) {
  vf v;
  for (int i = 0; i < LF; ++i) v[i] = planes[i][at];
  return v;
}
template <class H> EP_INLINE vf column(const H* const* planes, int64_t at) {
  vh v;
  for (int i = 0; i < LF; ++i) v[i] = planes[i][at].bits;
  return from_bits(v, H{});
}
EP_INLINE void store_column(float* const* planes, int64_t at, vf v, int used) {
  for (int i = 0; i < used; ++i) planes[i][at] = v[i];
}
template <class H> EP_INLINE void store_column(H* const* planes, int64_t at, vf v, int used) {
  const vh bits = to_bits(v, H{});
  for (int i = 0; i < used; ++i) planes[i][at].bits = bits[i];
}

EP_INLINE Wide transposed_sums(vd* rows) { return {transposed_sum(rows), transposed_sum(rows + LD)}; }

EP_INLINE Setting<float> of_plane(Setting<float> s, int i) {
  s.p = splat<vf>(s.p[i]);
  return s;
}

// ---- reducers: what pass one has found, and the sums ----------------------------------------------------------------------

// An element to which the other elements that a lane has seen do not matter any more.
EP_INLINE vf found(const MaxOp<float, false, false, true>& op) {
  return op.nan ? splat<vf>(std::numeric_limits<float>::quiet_NaN()) : op.v;
}
EP_INLINE vf found(const PowerOp<float>& op) { return op.rising ? op.key : -op.key; }
EP_INLINE vf found(const Tilted<float>& op) { return op.c; }

// The state of one plane, for all lanes to go along it.
template <class Op> EP_INLINE Op of_plane(const Op& op, int) { return op; }
EP_INLINE PowerOp<float> of_plane(PowerOp<float> op, int i) {
  op.top = splat<vf>(op.top[i]), op.setting = of_plane(op.setting, i);
  return op;
}
EP_INLINE SoftOp<float> of_plane(SoftOp<float> op, int i) {
  op.c = splat<vf>(op.c[i]), op.beta = splat<vf>(op.beta[i]);
  return op;
}
EP_INLINE LogSumExpOp<float> of_plane(LogSumExpOp<float> op, int i) {
  op.c = splat<vf>(op.c[i]), op.r = splat<vf>(op.r[i]);
  return op;
}

template <class Op> constexpr int SUMS = 1;
template <> constexpr int SUMS<SoftOp<float>> = 2;
template <class Op> EP_INLINE Wide& sum(Op& op, int) { return op.s; }
EP_INLINE Wide& sum(PowerOp<float>& op, int) { return op.s.less; }
EP_INLINE Wide& sum(LogSumExpOp<float>& op, int) { return op.s.less; }
EP_INLINE Wide& sum(SoftOp<float>& op, int k) { return k == 0 ? op.s : op.t; }

template <class Op> EP_INLINE void tap(Op& op, vf x) { op.template tap<false>(x, vi{}, vi{}); }
template <class Op> EP_INLINE void add(Op& op, vf x) {
  if constexpr (Op::two_passes)
    op.template tap2<false>(x, vi{});
  else
    tap(op, x);
}

// ---- groups ----------------------------------------------------------------------------------------------------------------

template <class T> struct Planes {
  const Plan& plan;
  const Call& call;
  const int64_t n = plan.folds[0].in, full = n - n % LF;
  const int64_t all = plan.N * plan.C, groups = (all + LF - 1) / LF;
  std::atomic<bool> declined{false};

  Seen<float> seen() const {
    return {splat<vf>(n), Lane<float>::all(plan.divisor == FIXED ? plan.fixed : double(n))};
  }
  Setting<float> setting(int64_t first) const {
    Setting<float> s;
    s.p = vf{};
    s.eps = (float)plan.eps, s.abs = plan.sign == ABS, s.sum = plan.sum, s.authors = plan.plain_gradient;
    if (call.parameters == 1) s.p = splat<vf>(*call.parameter);
    if (call.parameters > 1)
      for (int i = 0; i < LF; ++i) s.p[i] = (float)call.parameter[(first + i) % plan.C];
    return s;
  }
  int used(int64_t first) const { return (int)std::min<int64_t>(LF, all - first); }
  template <class P> void rows_of(P* base, int64_t first, Row<P>& rows) const {  // the last plane stands for those missing
    for (int i = 0; i < LF; ++i) rows[i] = base + std::min(first + i, all - 1) * n;
  }
  float* kept(int64_t first, int component) const { return static_cast<float*>(call.aux[0]) + component * groups * LF + first; }
  void store(int64_t first, vf y) const {
    T* to = static_cast<T*>(call.y[0]) + first;
    first + LF <= all ? store_as(to, y) : store_part(to, y, all - first);
  }

  // ---- forward

  template <class Op> EP_INLINE void find(const Row<const T>& rows, const Setting<float>& s, Op& op) const {
    if (full > 0) {
      vf lanes[LF];
      for (int i = 0; i < LF; ++i) {
        Op one;
        one.begin(of_plane(s, i));
        for (int64_t j = 0; j < full; j += LF) tap(one, load_as(rows[i] + j));
        lanes[i] = found(one);
        if constexpr (Op::two_passes) op.bad_ |= one.bad_;
      }
      transpose(lanes);
      for (int i = 0; i < LF; ++i) tap(op, lanes[i]);
    }
    for (int64_t j = full; j < n; ++j) tap(op, column(rows, j));
  }
  template <class Op> EP_INLINE void add_up(const Row<const T>& rows, Op& op) const {
    constexpr int K = SUMS<Op>, CHAINS = Op::two_passes ? 1 : 2;  // chains of additions that do not wait for one another
    vd lanes[K][LF];
    for (int i = 0; i < LF; ++i) {
      Op one[CHAINS];
      for (Op& chain : one) chain = of_plane(op, i);
      int64_t j = 0;
      for (; j + CHAINS * LF <= full; j += CHAINS * LF)
        for (int c = 0; c < CHAINS; ++c) add(one[c], load_as(rows[i] + j + c * LF));
      for (; j < full; j += LF) add(one[0], load_as(rows[i] + j));
      for (int k = 0; k < K; ++k) {
        for (int c = 1; c < CHAINS; ++c) sum(one[0], k) = sum(one[0], k) + sum(one[c], k);
        lanes[k][i] = halves(sum(one[0], k));
      }
      if constexpr (Op::two_passes) op.bad_ |= one[0].bad_;
    }
    for (int k = 0; k < K; ++k) sum(op, k) = transposed_sums(lanes[k]);
    for (int64_t j = full; j < n; ++j) add(op, column(rows, j));
  }
  // values of a group; `few`: what the gradient needs
  template <class Op> vf reduce(int64_t first, const Setting<float>& s, vf* few, vi& bad) const {
    Row<const T> rows;
    rows_of(static_cast<const T*>(call.x), first, rows);
    Op op;
    op.begin(s);
    if constexpr (Op::two_passes || SUMS<Op> == 0) find(rows, s, op);
    if constexpr (Op::two_passes) op.between();
    if constexpr (SUMS<Op> > 0) add_up(rows, op);
    return op.finish(s, seen(), few, bad);
  }
  template <class Op> bool forward(int64_t first, const Setting<float>& s) const {
    vf few[3];
    vi bad{};
    store(first, reduce<Op>(first, s, few, bad));
    if (call.save)
      for (int k = 0; k < Op::aux; ++k) storeu(kept(first, k), few[k]);
    return !any(bad);
  }
  bool forward(int64_t first) const {
    const Setting<float> s = setting(first);
    switch (plan.op) {
      case MEAN: return mean(first, s);
      case SOFT: return forward<SoftOp<float>>(first, s);
      case LOGSUMEXP: return forward<LogSumExpOp<float>>(first, s);
      case POWER:
        if (!any(s.p != 1)) return forward<PowerSumOp<float, 1>>(first, s);
        if (!any(s.p != 2)) return forward<PowerSumOp<float, 2>>(first, s);
        if (!any(s.p != 3)) return forward<PowerSumOp<float, 3>>(first, s);
        return forward<PowerOp<float>>(first, s);
      default: return maximum(first, s);
    }
  }

  // ---- means and maxima: reading is what they cost

  // M: whole vectors of a plane where they are few, else 0
  template <int M> EP_INLINE vd plane_total(const T* x, vi rest) const {
    constexpr int BLOCK = M > 0 ? M : MOST_VECTORS;
    TotalOf op;
    Wide total = widened(tree<BLOCK>(x, LF, op));
    int64_t j = BLOCK * LF;
    if (M == 0) {
      for (; j + BLOCK * LF <= full; j += BLOCK * LF) total = total + widened(tree<BLOCK>(x + j, LF, op));
      for (; j < full; j += LF) total = total + widened(load_as(x + j));
    }
    if (full < n) total = total + widened(keep(load_as(x + n - LF), rest));
    return halves(total);
  }
  template <int M> EP_INLINE vf plane_largest(const T* x, LargestOf& op) const {
    constexpr int BLOCK = M > 0 ? M : MOST_VECTORS;
    vf top = tree<BLOCK>(x, LF, op);
    int64_t j = BLOCK * LF;
    if (M == 0) {
      for (; j + BLOCK * LF <= full; j += BLOCK * LF) top = op.join(top, tree<BLOCK>(x + j, LF, op));
      for (; j < full; j += LF) top = op.join(top, op.one(load_as(x + j)));
    }
    return full < n ? op.join(top, op.one(load_as(x + n - LF))) : top;  // some of them again
  }
  bool mean(int64_t first, const Setting<float>& s) const {
    vi bad{};
    if (full == 0) return forward<MeanOp<float>>(first, s);
    Row<const T> rows;
    rows_of(static_cast<const T*>(call.x), first, rows);
    vi rest;
    for (int i = 0; i < LF; ++i) rest[i] = i >= LF - (n - full) ? -1 : 0;
    vd lanes[LF];
    with_vectors([&](auto M) {
      for (int i = 0; i < LF; ++i) lanes[i] = plane_total<M>(rows[i], rest);
    });
    MeanOp<float> op;
    op.s = transposed_sums(lanes);
    const vf y = op.finish(s, seen(), nullptr, bad);
    if (any(infinite(y))) return forward<MeanOp<float>>(first, s);  // a sum of eight may be too large for a float
    store(first, y);
    return true;
  }
  vf top_of(int64_t first, const Setting<float>& s) const {
    vi bad{};
    if (full > 0) {
      Row<const T> rows;
      rows_of(static_cast<const T*>(call.x), first, rows);
      vf lanes[LF];
      LargestOf op;
      with_vectors([&](auto M) {
        for (int i = 0; i < LF; ++i) lanes[i] = plane_largest<M>(rows[i], op);
      });
      if (!any(op.odd)) {
        transpose(lanes);
        for (int i = 1; i < LF; ++i) lanes[0] = largest(lanes[0], lanes[i]);
        return lanes[0];
      }
    }
    return reduce<MaxOp<float, false, false, true>>(first, s, nullptr, bad);
  }
  template <class F> EP_INLINE void with_vectors(const F& f) const {
    switch (full / LF) {
      case 1: return f(std::integral_constant<int, 1>{});
      case 2: return f(std::integral_constant<int, 2>{});
      case 3: return f(std::integral_constant<int, 3>{});
      case 4: return f(std::integral_constant<int, 4>{});
      case 5: return f(std::integral_constant<int, 5>{});
      case 6: return f(std::integral_constant<int, 6>{});
      case 7: return f(std::integral_constant<int, 7>{});
      default: return f(std::integral_constant<int, 0>{});
    }
  }

  // ---- places of maxima

  int32_t* won(int64_t first) const { return static_cast<int32_t*>(call.aux[0]) + first; }

  // The first place of each plane's maximum, or the last; of NaN always the last.
  vi places(const Row<const T>& rows, vf top) const;
  bool maximum(int64_t first, const Setting<float>& s) const;
  void max_backward(int64_t first) const;

  // ---- backward

  template <class G> void backward(int64_t first, const Setting<float>& s) const {
    Row<const T> rows;
    Row<T> to;
    rows_of(static_cast<const T*>(call.x), first, rows), rows_of(static_cast<T*>(call.dx), first, to);
    const int number = used(first);
    const vf grad = load_part(static_cast<const T*>(call.grad[0]) + first, number);
    vf few[3];
    for (int k = 0; k < G::aux; ++k) few[k] = loadu<vf>(kept(first, k));
    const Seen<float> window = seen();
    vd slopes[LF] = {};
    for (int i = 0; i < number; ++i) {
      vf own[3];
      for (int k = 0; k < G::aux; ++k) own[k] = splat<vf>(few[k][i]);
      G one;
      one.begin(of_plane(s, i), window, splat<vf>(grad[i]), own, vi{});
      for (int64_t j = 0; j < full; j += LF) store_as(to[i] + j, one.tap(G::values ? load_as(rows[i] + j) : vf{}, vi{}, splat<vi>(-1)));
      slopes[i] = halves(one.slope());
    }
    G op;
    op.begin(s, window, grad, few, vi{});
    for (int64_t j = full; j < n; ++j) store_column(to, j, op.tap(G::values ? column(rows, j) : vf{}, vi{}, splat<vi>(-1)), number);
    if (!call.dparameter) return;
    const Wide slope = transposed_sums(slopes) + op.slope();
    for (int i = 0; i < number; ++i) call.dparameter[first + i] = i < LD ? slope.lo[i] : slope.hi[i - LD];
  }
  void mean_backward(int64_t first) const {
    const int number = used(first);
    const vf grad = narrowed(widened(load_part(static_cast<const T*>(call.grad[0]) + first, number)) / seen().divisor);
    T* to = static_cast<T*>(call.dx) + first * n;
    for (int i = 0; i < number; ++i, to += n) {
      const vf value = splat<vf>(grad[i]);
      for (int64_t j = 0; j < full; j += LF) store_as(to + j, value);
      if (full == n) continue;
      full > 0 ? store_as(to + n - LF, value) : store_part(to, value, n);
    }
  }
  template <bool SLOPE> void backward(int64_t first) const {
    const Setting<float> s = setting(first);
    switch (plan.op) {
      case MEAN: return mean_backward(first);
      case SOFT: return backward<SoftGrad<float, SLOPE>>(first, s);
      case LOGSUMEXP: return backward<LogSumExpGrad<float, SLOPE>>(first, s);
      case POWER:
        if (!any(s.p != 1)) return backward<PowerGrad<float, 1, SLOPE>>(first, s);
        if (!any(s.p != 2)) return backward<PowerGrad<float, 2, SLOPE>>(first, s);
        if (!any(s.p != 3)) return backward<PowerGrad<float, 3, SLOPE>>(first, s);
        return backward<PowerGrad<float, 0, SLOPE>>(first, s);
      default: return max_backward(first);
    }
  }

  void units(int64_t begin, int64_t end, bool back) {
    for (int64_t g = begin; g < end && !declined; ++g) {
      if (back)
        call.dparameter ? backward<true>(g * LF) : backward<false>(g * LF);
      else if (!forward(g * LF))
        declined = true;
    }
  }
};
template <> constexpr int SUMS<MaxOp<float, false, false, true>> = 0;

template <class T> vi Planes<T>::places(const Row<const T>& rows, vf top) const {
  vi at;
  for (int i = 0; i < LF; ++i) at[i] = i;
  // the earlier in this order wins
  const int32_t ahead = plan.last ? -1 : 1, begin = plan.last ? (int32_t)n - 1 : 0;
  vi lanes[LF];
  for (int i = 0; i < LF; ++i) {
    const vf value = splat<vf>(top[i]);
    vi order = at * ahead + begin, least = splat<vi>(std::numeric_limits<int32_t>::max());
    for (int64_t j = 0; j < full; j += LF, order += LF * ahead) {
      vi here = load_as(rows[i] + j) == value ? order : least;
      least = here < least ? here : least;
    }
    lanes[i] = least;
  }
  transpose(reinterpret_cast<vf*>(lanes));
  vi best = lanes[0];
  for (int i = 1; i < LF; ++i) best = lanes[i] < best ? lanes[i] : best;
  for (int64_t j = full; j < n; ++j) {
    vi here = column(rows, j) == top ? splat<vi>((int32_t)j * ahead + begin) : best;
    best = here < best ? here : best;
  }
  best = plan.last ? begin - best : best;
  if (any(top != top))
    for (int i = 0; i < LF; ++i)
      if (top[i] != top[i])
        for (int64_t j = 0; j < n; ++j)
          if (vf x = load_part(rows[i] + j, 1); x[0] != x[0]) best[i] = (int32_t)j;
  return best;
}

template <class T> bool Planes<T>::maximum(int64_t first, const Setting<float>& s) const {
  if (call.take) {
    const int32_t* place = won(first);
    T* y = static_cast<T*>(call.y[0]) + first;
    const T* x = static_cast<const T*>(call.x) + first * n;
    for (int i = 0; i < used(first); ++i) y[i] = x[i * n + place[i]];
    return true;
  }
  const vf top = top_of(first, s);
  store(first, top);
  if (call.save) {
    Row<const T> rows;
    rows_of(static_cast<const T*>(call.x), first, rows);
    storeu(won(first), places(rows, top));
  }
  return true;
}

template <class T> void Planes<T>::max_backward(int64_t first) const {
  const int64_t number = used(first);
  const T* grad = static_cast<const T*>(call.grad[0]) + first;
  T* dx = static_cast<T*>(call.dx) + first * n;
  std::memset((void*)dx, 0, sizeof(T) * number * n);
  for (int64_t i = 0; i < number; ++i) dx[i * n + won(first)[i]] = grad[i];
}

bool run(const Plan& plan, const Call& call, bool back) {
  return with_type(plan.type, [&](auto type) {
    Planes<decltype(type)> planes{plan, call};
    const bool done = in_parallel(planes.groups, planes.all * planes.n >= SERIAL,
                                  [&](int64_t begin, int64_t end) { planes.units(begin, end, back); });
    return done && !planes.declined;
  });
}

}  // namespace

bool globals_suits(const Plan& plan, bool training) {
  const Fold& f = plan.folds[0];
  if (plan.folds.size() > 1 || plan.mask_channels || plan.index != NO_INDEX) return false;
  const bool whole = f.axis[0].whole() && f.axis[1].whole() && f.axis[2].whole();
  if (plan.type >= INT8) return whole && !plan.pixels && !training;
  if (plan.pixels && (plan.C < LF || !(plan.op == MEAN || (plan.op == MAX && !training)))) return false;
  if (plan.op == MEAN && plan.divisor == CELLS) return false;
  if (plan.type != FLOAT32 && plan.type != BFLOAT16 && plan.type != FLOAT16) return false;
  return whole;
}

int64_t globals_aux_bytes(const Plan& plan, size_t) {
  const int components = plan.op == MEAN ? 0 : plan.op == MAX ? 1 : 3;
  return (plan.N * plan.C + LF - 1) / LF * LF * components * 4;
}

bool globals_forward(const Plan& plan, const Call& call) {
  if (plan.type >= INT8) return global_integers_forward(plan, call);
  return plan.pixels ? global_pixels_forward(plan, call) : run(plan, call, false);
}
bool globals_backward(const Plan& plan, const Call& call) {
  return plan.pixels ? global_pixels_backward(plan, call) : run(plan, call, true);
}

}  // namespace everypool
