// One small struct per reducer: how a window's elements, lane by lane, become its value, and its gradient theirs.
#pragma once
#include "vec.h"

namespace everypool {

// What a window is to a reducer: how many elements count, and by what a mean divides.
template <class C> struct Seen {
  using V = typename Lane<C>::V;
  using W = typename Lane<C>::W;
  V number;    // valid elements, per lane
  W divisor;
};

template <class C> struct Setting {
  using V = typename Lane<C>::V;
  V p;       // p, beta or r
  C eps;
  bool abs, sum, authors;
};

// all bits where x is NaN or infinite
EP_INLINE vi infinite(vf x) { return ~((vi)((x - x) == 0.0f)); }
EP_INLINE vl infinite(vd x) { return ~((vl)((x - x) == 0.0)); }

template <class C, bool INDEX, bool LAST, bool NANS> struct MaxOp {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr bool two_passes = false, takes = false;
  static constexpr int aux = 0;
  V v;
  M i, nan;
  EP_INLINE void begin(const Setting<C>&) {
    v = splat<V>(lowest<C>());
    i = splat<M>(-1);
    nan = M{};
  }
  template <bool MASK> EP_INLINE void tap(V x, M t, M m) {
    if constexpr (INDEX) {
      M better = LAST ? (M)(x >= v) : (M)(x > v);
      if constexpr (NANS) better |= (M)(x != x);
      better |= i < 0;
      if constexpr (MASK) better &= m;
      v = better ? x : v;
      i = better ? t : i;
    } else {
      if constexpr (MASK) x = m ? x : splat<V>(lowest<C>());
      v = largest(x, v);
      if constexpr (NANS) nan |= (M)(x != x);
    }
  }
  template <bool MASK> EP_INLINE void tap2(V, M) {}
  EP_INLINE V finish(const Setting<C>&, const Seen<C>&, V*, M&) {
    if constexpr (!INDEX && NANS) v = nan ? splat<V>(std::numeric_limits<C>::quiet_NaN()) : v;
    return v;
  }
};

// The element that won before.
template <class C> struct TakeOp {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr bool two_passes = false, takes = true;
  static constexpr int aux = 0;
  V v;
  M i;
  EP_INLINE void begin(const Setting<C>&) { v = V{}; }
  template <bool MASK> EP_INLINE void tap(V x, M t, M) { v = i == t ? x : v; }
  template <bool MASK> EP_INLINE void tap2(V, M) {}
  EP_INLINE V finish(const Setting<C>&, const Seen<C>&, V*, M&) { return v; }
};

template <class C> struct MeanOp {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool two_passes = false, takes = false;
  static constexpr int aux = 0;
  W s;
  EP_INLINE void begin(const Setting<C>&) { s = Lane<C>::zero(); }
  template <bool MASK> EP_INLINE void tap(V x, M, M m) { s = s + Lane<C>::wide(MASK ? keep(x, m) : x); }
  template <bool MASK> EP_INLINE void tap2(V, M) {}
  EP_INLINE V finish(const Setting<C>&, const Seen<C>& seen, V*, M&) { return Lane<C>::narrow(s / seen.divisor); }
};

template <class C> EP_INLINE typename Lane<C>::V magnitude(typename Lane<C>::V x) {
  using V = typename Lane<C>::V;
  return largest(x, -x) + V{};  // never -0
}
template <class C> EP_INLINE typename Lane<C>::V positive(typename Lane<C>::V x, const Setting<C>& s) {
  using V = typename Lane<C>::V;
  return s.abs ? magnitude<C>(x) : largest(splat<V>(s.eps), x);
}

constexpr uint64_t SCALE = uint64_t(1) << 60;  // of subnormal numbers, before they are divided by

// A subnormal result has lost digits: what is kept of it for the gradient is scaled, and negative to tell so.
template <class C> EP_INLINE typename Lane<C>::V keep_digits(typename Lane<C>::V y, typename Lane<C>::W level) {
  using V = typename Lane<C>::V;
  return y < std::numeric_limits<C>::min() ? -Lane<C>::narrow(level * Lane<C>::wide(splat<V>(C(SCALE)))) : y;
}
template <class C> EP_INLINE typename Lane<C>::W restore_digits(typename Lane<C>::V kept) {
  using V = typename Lane<C>::V;
  return Lane<C>::wide(kept < 0 ? -kept : kept) * Lane<C>::wide(kept < 0 ? splat<V>(1 / C(SCALE)) : splat<V>(1));
}

// p = 1, 2, 3: sums of powers in double neither overflow nor vanish for what float holds
template <class C, int P> struct PowerSumOp {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool two_passes = false, takes = false;
  static constexpr int aux = 1;
  W s;
  Setting<C> setting;
  EP_INLINE void begin(const Setting<C>& given) {
    s = Lane<C>::zero();
    setting = given;
  }
  template <bool MASK> EP_INLINE void tap(V x, M, M m) {
    V a = positive<C>(x, setting);
    if constexpr (MASK) a = keep(a, m);
    W w = Lane<C>::wide(a);
    s = s + (P == 1 ? w : P == 2 ? w * w : w * w * w);
  }
  template <bool MASK> EP_INLINE void tap2(V, M) {}
  EP_INLINE V finish(const Setting<C>&, const Seen<C>& seen, V* keep_, M& bad) {
    W mean = setting.sum ? s : s / Lane<C>::wide(seen.number);
    const W level = P == 1 ? mean : P == 2 ? root(mean) : cube_root(mean);
    V y = Lane<C>::narrow(level);
    bad |= infinite(y);
    keep_[0] = keep_digits<C>(y, level);
    return y;
  }
};

// Weights by their exponents (-inf: none), each less one, added up: their mean may be near 1, or so small that its distance
// from 1 does not tell it.
template <class C> struct Lesser {
  using V = typename Lane<C>::V;
  using W = typename Lane<C>::W;
  W less = Lane<C>::zero();
  template <bool MASK> EP_INLINE void add(V exponent, typename Lane<C>::M m) {
    const V e = exponential_m1(exponent);
    less = less + Lane<C>::wide(MASK ? keep(e, m) : e);
  }
  EP_INLINE W all(W number) const { return less + number; }
  EP_INLINE V level(W number) const { return logarithm_p1(Lane<C>::narrow(less / number)); }  // log of the mean
};
template <> struct Lesser<double> {
  vd less{}, whole{}, lost{};  // lost: of the whole, by rounding, which goes one way where elements are equal
  template <bool MASK> EP_INLINE void add(vd exponent, vl m) {
    for (int i = 0; i < LD; ++i) {
      if (MASK && !m[i]) continue;
      const bool near = exponent[i] > -0.5;
      const double e = near ? std::expm1(exponent[i]) : std::exp(exponent[i]);
      const double weight = near ? e + 1 : e, sum = whole[i] + weight, part = sum - whole[i];
      lost[i] += (whole[i] - (sum - part)) + (weight - part);
      less[i] += near ? e : e - 1, whole[i] = sum;
    }
  }
  EP_INLINE vd all(vd) const { return whole + lost; }
  EP_INLINE vd level(vd number) const {
    const vd m1 = less / number;
    const vl near = m1 > -0.5;
    return near ? logarithm_p1(near ? m1 : vd{}) : logarithm(near ? vd{} + 1 : all(number) / number);
  }
};

// top * exp(level / p) with level = log(mean), and where powers are summed log(n) on top; in double where float has too few
// digits for the exponent.
template <class C>
EP_INLINE typename Lane<C>::V root_of_mean(typename Lane<C>::V top, typename Lane<C>::W mean, typename Lane<C>::V n, const Setting<C>& s,
                                           typename Lane<C>::V& level) {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  const V log_n = s.sum ? logarithm(n) : V{}, size = magnitude<C>(s.p);
  const V far = magnitude<C>(level) + log_n;
  if (std::is_same_v<C, float> && any((M)(far > 4 * size) & (M)(far < std::numeric_limits<C>::max()))) {
    const auto log_of = each(mean, [](double v) { return std::log(v); });
    const auto log_all = s.sum ? log_of + each(Lane<C>::wide(n), [](double v) { return std::log(v); }) : log_of;
    level = Lane<C>::narrow(log_all);
    return Lane<C>::narrow(Lane<C>::wide(top) * each(log_all / Lane<C>::wide(s.p), [](double v) { return std::exp(v); }));
  }
  level = level + log_n;
  return top * exponential(level / s.p);
}

// (mean of a^p)^(1/p) = top * exp(log(mean of (a / top)^p) / p), top being what the powers are largest of
template <class C> struct PowerOp {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool two_passes = true, takes = false;
  static constexpr int aux = 3;
  V key, top;
  M rising, bad_;
  Lesser<C> s;
  Setting<C> setting;
  EP_INLINE void begin(const Setting<C>& given) {
    setting = given;
    rising = (M)(given.p > 0);
    key = splat<V>(lowest<C>());
    bad_ = M{};
    s = {};
  }
  template <bool MASK> EP_INLINE void tap(V x, M, M m) {
    V a = positive<C>(x, setting);
    bad_ |= MASK ? infinite(a) & m : infinite(a);
    V k = rising ? a : -a;
    if constexpr (MASK) k = m ? k : splat<V>(lowest<C>());
    key = largest(k, key);
  }
  EP_INLINE void between() {
    top = rising ? key : -key;
    top = top > 0 ? top : splat<V>(1);
  }
  template <bool MASK> EP_INLINE void tap2(V x, M m) {
    V a = positive<C>(x, setting), t = a / top;
    M nothing = a == 0;
    M lost = ~nothing & ((t < std::numeric_limits<C>::min()) | (t > std::numeric_limits<C>::max()));
    bad_ |= MASK ? lost & m : lost;
    V d = setting.p * logarithm(nothing ? splat<V>(1) : t);
    s.template add<MASK>(nothing ? splat<V>(-std::numeric_limits<C>::infinity()) : d, m);
  }
  EP_INLINE V finish(const Setting<C>&, const Seen<C>& seen, V* keep_, M& bad) {
    const W number = Lane<C>::wide(seen.number);
    V level = s.level(number);
    M zero = rising ? (M)(key <= 0) : (M)(key >= 0);
    V y = zero ? V{} : root_of_mean<C>(top, s.all(number) / number, seen.number, setting, level);
    V above = level / setting.p;
    bad |= bad_ | infinite(y);
    keep_[0] = y, keep_[1] = zero ? V{} : top, keep_[2] = above;  // y of the smallest numbers may be 0 and top not
    return y;
  }
};

// Sums around c, the value with the largest weight: only differences are added.
template <class C> struct Tilted {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  V most, c;
  M bad_;
  EP_INLINE void start() {
    most = splat<V>(lowest<C>());
    c = V{};
    bad_ = M{};
  }
  template <bool MASK> EP_INLINE void see(V x, M m, V beta) {
    V u = beta * x;
    bad_ |= MASK ? infinite(u) & m : infinite(u);
    M better = (M)(u > most);
    if constexpr (MASK) better &= m;
    most = better ? u : most;
    c = better ? x : c;
  }
};

template <class C> struct SoftOp : Tilted<C> {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool two_passes = true, takes = false;
  static constexpr int aux = 3;
  W s, t;
  V beta;
  EP_INLINE void begin(const Setting<C>& given) {
    this->start();
    beta = given.p;
    s = t = Lane<C>::zero();
  }
  template <bool MASK> EP_INLINE void tap(V x, M, M m) { this->template see<MASK>(x, m, beta); }
  EP_INLINE void between() {}
  template <bool MASK> EP_INLINE void tap2(V x, M m) {
    V d = x - this->c, e = exponential(beta * d);
    if constexpr (MASK) e = keep(e, m), d = keep(d, m);
    s = s + Lane<C>::wide(e);
    t = t + Lane<C>::wide(e * d);
  }
  EP_INLINE V finish(const Setting<C>&, const Seen<C>&, V* keep_, M& bad) {
    bad |= this->bad_;
    V sum = Lane<C>::narrow(s), above = Lane<C>::narrow(t) / sum;
    V y = this->c + above;
    bad |= infinite(y);
    keep_[0] = above, keep_[1] = this->c, keep_[2] = sum;  // y - c: y itself has lost digits where c is large
    return y;
  }
};

template <class C> struct LogSumExpOp : Tilted<C> {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool two_passes = true, takes = false;
  static constexpr int aux = 3;
  Lesser<C> s;
  V r;
  EP_INLINE void begin(const Setting<C>& given) {
    this->start();
    r = given.p;
    s = {};
  }
  template <bool MASK> EP_INLINE void tap(V x, M, M m) { this->template see<MASK>(x, m, r); }
  EP_INLINE void between() {}
  template <bool MASK> EP_INLINE void tap2(V x, M m) {
    s.template add<MASK>(r * (x - this->c), m);
  }
  EP_INLINE V finish(const Setting<C>& given, const Seen<C>& seen, V* keep_, M& bad) {
    bad |= this->bad_;
    W n = Lane<C>::wide(seen.number);
    V level = s.level(n);
    if (given.sum) level = level + logarithm(seen.number);
    V y = this->c + level / r;
    bad |= infinite(y);
    keep_[0] = y, keep_[1] = this->c, keep_[2] = Lane<C>::narrow(s.all(n));
    return y;
  }
};

// ---- gradients: `tap` says what an element gets from one window; those that do not count add nothing to the slope -------

template <class C> struct MaxGrad {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr int aux = 0;
  static constexpr bool index = true, values = false;
  V g;
  M i;
  EP_INLINE void begin(const Setting<C>&, const Seen<C>&, V grad, const V*, M won) {
    g = grad;
    i = won;
  }
  EP_INLINE V tap(V, M t, M) { return keep(g, (M)(i == t)); }
  EP_INLINE typename Lane<C>::W slope() { return Lane<C>::zero(); }
};

template <class C> struct MeanGrad {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr int aux = 0;
  static constexpr bool index = false, values = false;
  V g;
  EP_INLINE void begin(const Setting<C>&, const Seen<C>& seen, V grad, const V*, M) {
    g = Lane<C>::narrow(Lane<C>::wide(grad) / seen.divisor);
  }
  EP_INLINE V tap(V, M, M) { return g; }
  EP_INLINE typename Lane<C>::W slope() { return Lane<C>::zero(); }
};

// dy/dx = (a / y)^(p - 1) / n;  dy/dp = y / p * sum of weight * log(a / y)
template <class C, int P, bool SLOPE> struct PowerGrad {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr int aux = P > 0 ? 1 : 3;
  static constexpr bool index = false, values = true;
  V g, inverse, scale, top, above, rise;  // the inverse of a subnormal number would be infinite: it is scaled first
  W s;
  Setting<C> setting;
  EP_INLINE void begin(const Setting<C>& given, const Seen<C>& seen, V grad, const V* kept, M) {
    setting = given;
    const V unit = P > 0 ? kept[0] : kept[1];
    const M zero = unit == 0;
    scale = unit < std::numeric_limits<C>::min() ? splat<V>(C(SCALE)) : splat<V>(1);
    const V n = given.sum ? splat<V>(1) : seen.number;
    g = zero && P != 1 ? V{} : grad / n;
    s = Lane<C>::zero();
    if constexpr (P > 0) {
      const V level = magnitude<C>(unit);  // scaled already, see `keep_digits`
      inverse = zero ? V{} : 1 / level;
      rise = level / (scale * given.p);
    } else {
      top = zero ? splat<V>(1) : unit, above = kept[2];
      inverse = zero ? V{} : 1 / (top * scale);
      rise = kept[0] / given.p;
    }
  }
  // log(a / y): p may be so large that a / y itself has too few digits
  EP_INLINE V logarithm_of_ratio(V a) const {
    if constexpr (P > 0) {
      V q = (a * scale) * inverse;
      return logarithm(q < std::numeric_limits<C>::min() ? splat<V>(1) : q);
    } else {
      V t = a / top;
      V near = logarithm_p1((a - top) / top);
      V far = logarithm(t < std::numeric_limits<C>::min() ? splat<V>(1) : t);
      return ((t > C(0.5)) & (t < C(2)) ? near : far) - above;
    }
  }
  EP_INLINE V tap(V x, M, M counts) {
    V a = positive<C>(x, setting);
    M out = setting.abs ? (M)(a == 0) : (M)(x < splat<V>(setting.eps));
    V w;
    if constexpr (P == 1 && !SLOPE) {
      w = g;
    } else {
      V q = (a * scale) * inverse;
      if constexpr (P == 2 && !SLOPE) {
        w = g * q;
      } else if constexpr (P == 3 && !SLOPE) {
        w = g * (q * q);
      } else {
        M nothing = q < std::numeric_limits<C>::min();
        V l = logarithm_of_ratio(a);
        V e = P == 1 ? splat<V>(1) : P == 2 ? q : P == 3 ? q * q : exponential((setting.p - 1) * l);
        w = keep(g * e, (M)~nothing);
        if constexpr (SLOPE) {
          V share = P > 0 ? w * q : keep(g * exponential(setting.p * l), (M)~nothing);
          s = s + Lane<C>::wide(keep(share * l * rise, counts));
        }
      }
    }
    if (setting.abs) w = x < 0 ? -w : w;
    return keep(w, (M)~out);
  }
  EP_INLINE W slope() { return s; }
};

template <class C, bool SLOPE> struct SoftGrad {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr int aux = 3;
  static constexpr bool index = false, values = true;
  V g, above, c, beta;
  W s;
  bool authors;
  EP_INLINE void begin(const Setting<C>& given, const Seen<C>&, V grad, const V* kept, M) {
    above = kept[0], c = kept[1];
    g = grad / kept[2];
    beta = given.p;
    authors = given.authors;
    s = Lane<C>::zero();
  }
  EP_INLINE V tap(V x, M, M counts) {
    V from_c = x - c, d = from_c - above;
    V w = g * exponential(beta * from_c);
    if constexpr (SLOPE) s = s + Lane<C>::wide(keep(w * d * d, counts));
    return authors ? w : w + w * (beta * d);
  }
  EP_INLINE W slope() { return s; }
};

template <class C, bool SLOPE> struct LogSumExpGrad {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr int aux = 3;
  static constexpr bool index = false, values = true;
  V g, y, c, r;
  W s;
  EP_INLINE void begin(const Setting<C>& given, const Seen<C>&, V grad, const V* kept, M) {
    y = kept[0], c = kept[1];
    g = grad / kept[2];
    r = given.p;
    s = Lane<C>::zero();
  }
  EP_INLINE V tap(V x, M, M counts) {
    V w = g * exponential(r * (x - c));
    if constexpr (SLOPE) s = s + Lane<C>::wide(keep(w * (x - y) / r, counts));
    return w;
  }
  EP_INLINE W slope() { return s; }
};

}  // namespace everypool
