#include "folds.h"

#include <cstdlib>
#include <new>
#include <type_traits>

namespace everypool {

constexpr int64_t STACK = 256 << 10;  // bytes that no call goes below

double most_states(const Fold& f) {
  double most = 1;
  for (int cut = 0; cut <= 3; ++cut) {  // the axes from there on are folded, the others not yet
    double number = 1;
    for (int axis = 0; axis < 3; ++axis) number *= (double)(axis < cut ? f.axis[axis].n : f.axis[axis].out);
    most = number > most ? number : most;
  }
  return most;
}

Scratch::~Scratch() { std::free(memory_); }
void* Scratch::take(int64_t bytes) {
  constexpr int64_t large = int64_t(8) << 20;
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > size_ || (size_ > large && bytes <= large)) {
    std::free(memory_);
    memory_ = nullptr, size_ = 0;
    if (posix_memalign(&memory_, 64, bytes) != 0) throw std::bad_alloc();
    size_ = bytes;
  }
  if (poison >= 0) std::memset(memory_, poison, size_);
  return memory_;
}

int poison = -1;
void set_poison(int byte) { poison = byte; }
__attribute__((noinline)) void poison_stack() {
  if (poison < 0) return;
  char memory[STACK];
  std::memset(memory, poison, sizeof memory);
  __asm__ volatile("" : : "r"(memory) : "memory");  // it is not read, and filled all the same
}

namespace {

// What is kept of a part of a window; `join` takes the part that comes first, then the one after it.
template <class C> struct Largest {
  typename Lane<C>::V v;
  static EP_INLINE Largest nothing() { return {splat<typename Lane<C>::V>(lowest<C>())}; }
  EP_INLINE Largest join(Largest b) const {
    if constexpr (std::is_same_v<C, int64_t>) {
      return {largest(v, b.v)};
    } else {
      auto wins = (v < b.v) | (b.v != b.v);
      return {wins ? b.v : v};
    }
  }
};
template <class C, bool LAST> struct Winner {
  typename Lane<C>::V v;
  typename Lane<C>::M i;  // -1: none yet
  static EP_INLINE Winner nothing() {
    return {splat<typename Lane<C>::V>(lowest<C>()), splat<typename Lane<C>::M>(-1)};
  }
  EP_INLINE Winner join(Winner b) const {
    using M = typename Lane<C>::M;
    M wins = LAST ? (M)(b.v >= v) : (M)(b.v > v);
    if constexpr (!std::is_same_v<C, int64_t>) wins |= (M)(b.v != b.v);
    wins = (wins | (i < 0)) & (M)(b.i >= 0);
    return {wins ? b.v : v, wins ? b.i : i};
  }
};
template <class C, int N> struct Sums {
  typename Lane<C>::W s[N];
  static EP_INLINE Sums nothing() {
    Sums r;
    for (int i = 0; i < N; ++i) r.s[i] = Lane<C>::zero();
    return r;
  }
  EP_INLINE Sums join(const Sums& b) const {
    Sums r;
    for (int i = 0; i < N; ++i) r.s[i] = s[i] + b.s[i];
    return r;
  }
};

constexpr int64_t CHUNK = 16;  // states along the inner axes that are folded at once: few rows of them stay in L1

// Prefixes and suffixes of blocks as long as the window (van Herk; Gil and Werman): three joins whatever the kernel.
template <class S> void by_blocks(const S* src, S* dst, int64_t n, int64_t out, int64_t inner, const Axis& a, S* suffix) {
  const int64_t k = a.kernel, s = a.stride, left = a.left, length = (out - 1) * s + k;
  for (int64_t c0 = 0; c0 < inner; c0 += CHUNK) {
    const int64_t width = inner - c0 < CHUNK ? inner - c0 : CHUNK;
    const auto row = [&](int64_t j) { return j - left >= 0 && j - left < n ? src + (j - left) * inner + c0 : nullptr; };
    for (int64_t block = 0; block < length; block += k) {
      for (int64_t c = 0; c < width; ++c) {
        S acc = S::nothing();
        for (int64_t i = k - 1; i >= 0; --i) {
          if (const S* x = row(block + i)) acc = x[c].join(acc);
          suffix[i * CHUNK + c] = acc;
        }
      }
      if (block % s == 0 && block / s < out)
        for (int64_t c = 0; c < width; ++c) dst[block / s * inner + c0 + c] = suffix[c];
      for (int64_t c = 0; c < width; ++c) {
        S acc = S::nothing();
        for (int64_t i = 0; i + 1 < k; ++i) {
          if (const S* x = row(block + k + i)) acc = acc.join(x[c]);
          const int64_t at = block + i + 1;
          if (at % s == 0 && at / s < out) dst[at / s * inner + c0 + c] = suffix[(i + 1) * CHUNK + c].join(acc);
        }
      }
    }
  }
}

template <class S> void fold_axis(const S* src, S* dst, int64_t outer, int64_t inner, const Axis& a, int64_t sample, S* suffix) {
  for (int64_t q = 0; q < outer; ++q, src += a.n * inner, dst += a.out * inner) {
    if (a.run) {
      // ends where the sample does: windows beyond its end have no elements
      int64_t from = 0, to = a.out;
      while (to > from && a.at(to - 1, sample).count == 0) --to;
      for (int64_t o = to; o < a.out; ++o)
        for (int64_t c = 0; c < inner; ++c) dst[o * inner + c] = S::nothing();
      for (int64_t c = 0; c < inner; ++c) {
        S acc = S::nothing();
        if (a.run == 1)
          for (int64_t o = from; o < to; ++o) dst[o * inner + c] = acc = acc.join(src[o * inner + c]);
        else
          for (int64_t o = to - 1; o >= from; --o) dst[o * inner + c] = acc = acc.join(src[o * inner + c]);
      }
    } else if (a.slides() && a.kernel > 6 && 3 * a.stride < a.kernel) {
      by_blocks(src, dst, a.n, a.out, inner, a, suffix);
    } else {
      Cursor window(a, sample, 0);
      for (int64_t o = 0; o < a.out; ++o, window.next())
        for (int64_t c = 0; c < inner; ++c) {
          S acc = S::nothing();
          const S* x = src + (*window).start * inner + c;
          for (int64_t t = 0; t < (*window).count; ++t, x += a.step * inner) acc = acc.join(*x);
          dst[o * inner + c] = acc;
        }
    }
  }
}

// The transpose of a sum: what each element gets from the windows that hold it.
template <class S> void spread_axis(const S* src, S* dst, int64_t outer, int64_t inner, const Axis& a, int64_t sample, S* suffix) {
  for (int64_t q = 0; q < outer; ++q, src += a.out * inner, dst += a.n * inner) {
    if (a.run) {
      const auto exists = [&](int64_t o) { return a.at(o, sample).count > 0; };
      for (int64_t c = 0; c < inner; ++c) {
        S acc = S::nothing();
        if (a.run == 1)
          for (int64_t o = a.out - 1; o >= 0; --o) {
            if (exists(o)) acc = acc.join(src[o * inner + c]);
            dst[o * inner + c] = acc;
          }
        else
          for (int64_t o = 0; o < a.out; ++o) {
            if (exists(o)) acc = acc.join(src[o * inner + c]);
            dst[o * inner + c] = exists(o) ? acc : S::nothing();  // no window holds what lies beyond a sample's end
          }
      }
    } else if (a.slides() && a.stride == 1 && a.kernel > 6) {
      Axis back;
      back.n = a.out, back.out = a.n, back.kernel = a.kernel, back.left = a.kernel - 1 - a.left;
      by_blocks(src, dst, a.out, a.n, inner, back, suffix);
    } else {
      for (int64_t j = 0; j < a.n * inner; ++j) dst[j] = S::nothing();
      Cursor window(a, sample, 0);
      for (int64_t o = 0; o < a.out; ++o, window.next())
        for (int64_t t = 0; t < (*window).count; ++t) {
          S* y = dst + ((*window).start + t * a.step) * inner;
          for (int64_t c = 0; c < inner; ++c) y[c] = y[c].join(src[o * inner + c]);
        }
    }
  }
}

// Folds over all axes, the last one first, so that the earlier of equal values is the first in row-major order.
// The states lie in the first of two buffers; the result is in the one returned.
template <class S> S* fold_all(const Fold& f, int64_t sample, S* a, S* b, S* suffix) {
  int64_t inner = 1;
  for (int axis = 2; axis >= 0; --axis) {
    const Axis& along = f.axis[axis];
    int64_t outer = 1;
    for (int i = 0; i < axis; ++i) outer *= f.axis[i].n;
    if (!along.kept()) {
      fold_axis(a, b, outer, inner, along, sample, suffix);
      std::swap(a, b);
    }
    inner *= along.out;
  }
  return a;
}
template <class S> S* spread_all(const Fold& f, int64_t sample, S* a, S* b, S* suffix) {
  int64_t outer = 1;
  for (int axis = 0; axis < 3; ++axis) {
    const Axis& along = f.axis[axis];
    int64_t inner = 1;
    for (int i = axis + 1; i < 3; ++i) inner *= f.axis[i].out;
    if (!along.kept()) {
      spread_axis(a, b, outer, inner, along, sample, suffix);
      std::swap(a, b);
    }
    outer *= along.n;
  }
  return a;
}

// Buffers for states of one type: each as long as the longest of what the folds make on the way.
template <class S> struct Buffers {
  S *a, *b, *suffix;
  Buffers(const Fold& f, Scratch& scratch, int64_t extra = 0) {
    const int64_t most = (int64_t)most_states(f);
    int64_t kernel = 1;
    for (const Axis& axis : f.axis) kernel = axis.slides() && axis.kernel > kernel ? axis.kernel : kernel;
    char* memory = static_cast<char*>(scratch.take((2 * most + kernel * CHUNK) * (int64_t)sizeof(S) + extra));
    a = reinterpret_cast<S*>(memory);
    b = a + most;
    suffix = b + most;
    rest = reinterpret_cast<char*>(suffix + kernel * CHUNK);
  }
  char* rest;
};

template <class C> struct Elements {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  const Plan& plan;
  const Fold& f;
  const View<C>& v;
  const M* mask;
  Elements(const Plan& p, const Fold& fold, const View<C>& view)
      : plan(p), f(fold), v(view), mask(static_cast<const M*>(view.mask)) {}
  EP_INLINE V x(int64_t i) const { return loadu<V>(v.x + i * Lane<C>::L); }
  EP_INLINE M counts(int64_t i) const { return mask ? mask[i] : splat<M>(-1); }
  // whether a window exists where its own place must
  EP_INLINE M there(int64_t o) const { return f.own_position && mask ? mask[o] : splat<M>(-1); }
  // lanes of those that are asked for in which no element of a window is as large as `least`
  M all_below(int64_t sample, const int64_t place[3], V least, M asked) const {
    each_of(sample, place, [&](int64_t at) {
      asked &= ~(counts(at) & (M)(magnitude<C>(x(at)) >= least));
      return any(asked);
    });
    return asked;
  }
  // of one window, element by element
  V log_sum_exp(int64_t sample, const int64_t place[3], const Setting<C>& s) const {
    LogSumExpOp<C> op;
    op.begin(s);
    V number{}, few[3];
    M bad{};
    each_of(sample, place, [&](int64_t at) {
      number = number + keep(splat<V>(1), counts(at));
      op.template tap<true>(x(at), M{}, counts(at));
      return true;
    });
    each_of(sample, place, [&](int64_t at) {
      op.template tap2<true>(x(at), counts(at));
      return true;
    });
    number = largest(number, splat<V>(1));
    return op.finish(s, Seen<C>{number, Lane<C>::wide(number)}, few, bad);
  }

 private:
  // visit(element) for those of one window, until it says false
  template <class F> void each_of(int64_t sample, const int64_t place[3], const F& visit) const {
    const Window d = f.axis[0].at(place[0], sample), h = f.axis[1].at(place[1], sample), w = f.axis[2].at(place[2], sample);
    for (int64_t i = 0; i < d.count; ++i)
      for (int64_t j = 0; j < h.count; ++j)
        for (int64_t k = 0; k < w.count; ++k)
          if (!visit(((d.start + i * f.axis[0].step) * f.axis[1].n + h.start + j * f.axis[1].step) * f.axis[2].n + w.start +
                     k * f.axis[2].step))
            return;
  }
};
constexpr int64_t FEW_ELEMENTS = 64;  // so few that a window is looked at by itself
constexpr int DIGITS = 64;  // so many times the rounding errors that a window may have

int64_t all_of(const Fold& f, int64_t sample, int64_t o, int64_t place[3]) {
  place[2] = o % f.axis[2].out;
  place[1] = o / f.axis[2].out % f.axis[1].out;
  place[0] = o / f.axis[2].out / f.axis[1].out;
  int64_t all = 1;
  for (int a = 0; a < 3; ++a) all *= f.axis[a].at(place[a], sample).count;
  return all;
}

template <class C, bool LAST>
bool max_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, Scratch& scratch) {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  constexpr int L = Lane<C>::L;
  const Elements<C> from(plan, f, v);
  int64_t place[3];
  if (!v.won && !v.position) {
    using S = Largest<C>;
    Buffers<S> buffer(f, scratch);
    for (int64_t i = 0; i < f.in; ++i) {
      V x = from.x(i);
      buffer.a[i] = {from.mask ? (from.mask[i] ? x : S::nothing().v) : x};
    }
    if (from.mask) {  // -inf may be a value or nothing at all
      Scratch other;
      Buffers<Sums<C, 1>> number(f, other);
      for (int64_t i = 0; i < f.in; ++i) number.a[i].s[0] = Lane<C>::wide(__builtin_convertvector(-from.mask[i], V));
      const Sums<C, 1>* n = fold_all(f, sample, number.a, number.b, number.suffix);
      const S* y = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
      for (int64_t o = 0; o < f.out; ++o)
        storeu(v.y + o * L, keep(y[o].v, (M)(Lane<C>::narrow(n[o].s[0]) > 0) & from.there(o)));
      return false;
    }
    const S* y = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
    for (int64_t o = 0; o < f.out; ++o) storeu(v.y + o * L, all_of(f, sample, o, place) ? y[o].v : V{});
    return false;
  }
  if (v.take) {
    const int32_t* won = static_cast<const int32_t*>(v.won);
    for (int64_t o = 0; o < f.out; ++o)
      for (int i = 0; i < L; ++i) {
        const int32_t at = won[o * v.as + i];
        v.y[o * L + i] = at >= 0 ? v.x[(int64_t)at * L + i] : C(0);
      }
    return false;
  }
  using S = Winner<C, LAST>;
  Buffers<S> buffer(f, scratch);
  for (int64_t i = 0; i < f.in; ++i) buffer.a[i] = {from.x(i), from.mask ? (from.mask[i] ? splat<M>(i) : splat<M>(-1)) : splat<M>(i)};
  const S* y = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
  for (int64_t o = 0; o < f.out; ++o) {
    M there = from.there(o), found = (y[o].i >= 0) & there;
    storeu(v.y + o * L, keep(y[o].v, found));
    M won = found ? y[o].i : splat<M>(-1);
    if (v.won)
      for (int i = 0; i < L; ++i) static_cast<int32_t*>(v.won)[o * v.as + i] = (int32_t)won[i];
    if (v.position)
      for (int i = 0; i < v.planes; ++i) v.position[i][o * v.ps] = won[i];
  }
  return false;
}

template <class C> EP_INLINE typename Lane<C>::W divisor(const Plan& plan, const Fold& f, int64_t sample, const int64_t place[3],
                                                         int64_t all, typename Lane<C>::V number) {
  using V = typename Lane<C>::V;
  if (plan.divisor == FIXED) return Lane<C>::all(plan.fixed);
  if (plan.divisor == VALID || !f.has_cells) return Lane<C>::wide(largest(number, splat<V>(1)));
  double cells = 1;
  for (int a = 0; a < 3; ++a) cells *= double(f.axis[a].cells(place[a], sample));
  return Lane<C>::all(cells - double(all)) + Lane<C>::wide(number);
}

template <class C> int special_power(const Setting<C>& s) {
  if constexpr (std::is_same_v<C, float>) {
    for (int p = 1; p <= 3; ++p) {
      bool all = true;
      for (int i = 0; i < Lane<C>::L; ++i) all = all && s.p[i] == C(p);
      if (all) return p;
    }
  }
  return 0;
}

// Exponentials around one value per plane: sums of them are plain sums, if no element lies too far below.
template <class C> struct Around {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr C LIMIT = 60;  // exponents below that have lost too many digits
  const Plan& plan;
  Setting<C> s;
  V top;  // the element with the largest weight; of a power mean, its absolute value
  M bad{}, far{};  // infinite; so far below the top that windows need references of their own
  Around(const Plan& p, const Setting<C>& setting) : plan(p), s(setting), top(splat<V>(p.op == POWER ? 1 : 0)) {}
  // the exponent of an element that is not zero
  EP_INLINE V exponent(V x) const {
    if (plan.op != POWER) return s.p * (x - top);
    const V a = positive<C>(x, s);
    return s.p * logarithm(a > 0 ? a / top : splat<V>(1));
  }
  EP_INLINE M zero(V x) const { return plan.op == POWER ? (M)(positive<C>(x, s) == 0) : M{}; }
  void prepare(const Elements<C>& from, int64_t in) {
    V most = splat<V>(lowest<C>());
    const M rising = (M)(s.p > 0);
    for (int64_t i = 0; i < in; ++i) {
      const V x = from.x(i), value = plan.op == POWER ? positive<C>(x, s) : x;
      const M m = from.counts(i), finite = ~infinite(x);
      bad |= m & ~finite;
      const V u = plan.op != POWER ? s.p * x : rising ? value : -value;
      const M better = (M)(u > most) & m & finite & ~zero(x);
      most = better ? u : most;
      top = better ? value : top;
    }
    for (int64_t i = 0; i < in; ++i) {
      const V x = from.x(i);
      const M m = from.counts(i), none = zero(x);
      far |= m & ((M)(exponent(x) < -LIMIT) & ~none);
      if (plan.op != POWER) continue;
      far |= m & none & (M)(s.p < 0);  // a zero makes such a mean zero; the sums cannot say so
      const V t = positive<C>(x, s) / top;
      far |= m & ~none & ((M)(t < std::numeric_limits<C>::min()) | (M)(t > std::numeric_limits<C>::max()));
    }
  }
  EP_INLINE V weight(V x, M m) const {
    const M none = zero(x) | ~m;
    return keep(exponential(none ? V{} : exponent(none ? splat<V>(1) : x)), (M)~none);
  }
  EP_INLINE V weight_m1(V x, M m) const {
    const M none = zero(x);
    const V e = exponential_m1(none | ~m ? V{} : exponent(none | ~m ? splat<V>(1) : x));
    return keep(none ? splat<V>(-1) : e, m);
  }
};

// Exponentials around the largest of what has been joined, in double: exact where one value per plane is too far away.
template <class C> struct Tilted {
  static constexpr int L = Lane<C>::L;
  const double* p;  // of each lane
  int op;
  double top[L], sum[L], other[L], number[L];  // sums of weights, and of weights less one, or of weighted distances from the top
  static Tilted nothing() { return {}; }
  Tilted join(const Tilted& b) const {
    if (!b.p) return *this;
    if (!p) return b;
    Tilted r = *this;
    for (int i = 0; i < L; ++i)
      if (b.number[i] > 0) r.add(i, b);
    return r;
  }

 private:
  void add(int i, const Tilted& b) {
    if (number[i] == 0) {
      top[i] = b.top[i], sum[i] = b.sum[i], other[i] = b.other[i], number[i] = b.number[i];
      return;
    }
    const bool above = p[i] < 0 ? b.top[i] < top[i] : b.top[i] > top[i];
    const double low = above ? top[i] : b.top[i], high = above ? b.top[i] : top[i];
    double &s = sum[i], &t = other[i], &n = number[i];
    const double low_s = above ? s : b.sum[i], low_t = above ? t : b.other[i], low_n = above ? n : b.number[i];
    const double d = exponent(i, low, high), less = std::expm1(d), e = less > -0.5 ? 1 + less : std::exp(d);
    s = (above ? b.sum[i] : s) + e * low_s;
    t = (above ? b.other[i] : t) + (op == SOFT ? e * (low_t + low_s * (low - high)) : e * low_t + low_n * less);
    n += b.number[i];
    top[i] = high;
  }
  double exponent(int i, double low, double high) const {
    if (low == high) return 0;
    if (op != POWER) return p[i] * (low - high);
    if (low == 0 || high == 0) return -std::numeric_limits<double>::infinity();
    const double t = low / high;
    return t >= std::numeric_limits<double>::min() && t <= std::numeric_limits<double>::max() ? p[i] * std::log(t) : std::nan("");
  }

 public:
  double value(int i, bool sums) const {
    if (op == SOFT) return top[i] + other[i] / sum[i];
    const double less = other[i] / number[i];
    double level = less > -0.5 ? std::log1p(less) : std::log(sum[i] / number[i]);
    if (sums) level += std::log(number[i]);
    if (op != POWER) return top[i] + level / p[i];
    return top[i] == 0 ? 0 : top[i] * std::exp(level / p[i]);
  }
  // of all weights, around another value
  double total(int i, double around) const { return sum[i] * std::exp(exponent(i, top[i], around)); }
};

// Windows around references of their own; true: something is infinite, or beyond the range of double.
template <class C>
bool tilted_forward(const Elements<C>& from, int64_t sample, const Around<C>& around, bool save, Scratch& scratch) {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  constexpr int L = Lane<C>::L;
  const Plan& plan = from.plan;
  const Fold& f = from.f;
  const View<C>& v = from.v;
  double p[L];
  for (int i = 0; i < L; ++i) p[i] = around.s.p[i];
  Buffers<Tilted<C>> buffer(f, scratch);
  for (int64_t j = 0; j < f.in; ++j) {
    const V x = from.x(j), value = plan.op == POWER ? positive<C>(x, around.s) : x;
    const M m = from.counts(j);
    Tilted<C>& to = buffer.a[j];
    to = Tilted<C>::nothing();
    to.p = p, to.op = plan.op;
    for (int i = 0; i < L; ++i)
      if (m[i]) to.top[i] = value[i], to.sum[i] = to.number[i] = 1;
  }
  const Tilted<C>* found = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
  bool bad = false;
  for (int64_t o = 0; o < f.out; ++o) {
    const M there = from.there(o);
    V y{}, total = splat<V>(1), top = splat<V>(1), kept_y = splat<V>(1);
    for (int i = 0; i < L; ++i) {
      if (!there[i] || !found[o].p || found[o].number[i] == 0) continue;
      const double value = found[o].value(i, plan.sum);
      y[i] = kept_y[i] = (C)value;
      if (plan.op == POWER && value < std::numeric_limits<C>::min()) kept_y[i] = (C)(-value * SCALE);
      bad |= !std::isfinite(y[i]);
      top[i] = around.top[i];
      if (save) total[i] = (C)found[o].total(i, around.top[i]);
    }
    storeu(v.y + o * L, y);
    if (!save || !v.aux) continue;
    const V kept[3] = {kept_y, top, total};
    for (int c = 0; c < 3; ++c) storeu(v.aux + c * v.component + o * v.as, kept[c]);
  }
  return bad;
}

template <class C>
bool sum_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>& s, bool save, Scratch& scratch) {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  using S = Sums<C, 3>;
  constexpr int L = Lane<C>::L;
  const Elements<C> from(plan, f, v);
  const int power = plan.op == POWER ? special_power(s) : 0;
  const bool plain = plan.op == MEAN || power;
  Around<C> around(plan, s);
  if (!plain) {
    around.prepare(from, f.in);
    if (any(around.bad)) return true;
    if (any(around.far)) return tilted_forward<C>(from, sample, around, save, scratch);
  }
  M bad{}, doubt{};  // doubt: too few digits are left of a window that lies far below the top
  const auto finish = [&](int64_t o, const W* sums, V number, const int64_t* place, int64_t all) {
    M some = (M)(number > 0) & from.there(o);
    V n = largest(number, splat<V>(1)), y, kept[3] = {};
    if (plan.op == MEAN) {
      y = Lane<C>::narrow(sums[0] / divisor<C>(plan, f, sample, place, all, number));
    } else if (power) {
      W mean = plan.sum ? sums[0] : sums[0] / Lane<C>::wide(n);
      const W level = power == 1 ? mean : power == 2 ? root(mean) : cube_root(mean);
      y = Lane<C>::narrow(level);
      bad |= some & infinite(y);
      kept[0] = keep_digits<C>(y, level);
    } else if (plan.op == SOFT) {
      y = Lane<C>::narrow(sums[1] / sums[0]);
      bad |= some & infinite(y);
      kept[0] = y, kept[1] = around.top, kept[2] = Lane<C>::narrow(sums[0]);
    } else {
      W ratio = sums[0] / Lane<C>::wide(n), less = sums[1] / Lane<C>::wide(n);
      V m1 = Lane<C>::narrow(less);
      V r = Lane<C>::narrow(ratio);
      M nothing = (M)(r <= 0);
      V level = m1 > C(-0.5) ? logarithm_p1(m1 > C(-0.5) ? m1 : V{}) : logarithm(nothing ? splat<V>(1) : r);
      const V away = magnitude<C>(level), log_mean = level;
      if (plan.op == POWER) {
        y = nothing ? V{} : root_of_mean<C>(around.top, ratio, n, s, level);
        kept[0] = y;
        if (const M small = (M)(y < std::numeric_limits<C>::min()) & ~nothing; any(small)) {
          V again = log_mean;
          kept[0] = small ? -root_of_mean<C>(around.top * C(SCALE), ratio, n, s, again) : y;
        }
        doubt |= some & ~nothing & (M)(away + 1 > 16 * magnitude<C>(s.p));
      } else {
        if (plan.sum) level = level + logarithm(n);
        y = around.top + level / s.p;
        const V scale = magnitude<C>(around.top) + 2 * magnitude<C>(level / s.p);
        const M few = some & (M)(scale > DIGITS * magnitude<C>(y));
        if (any(few)) {
          const M lost = from.all_below(sample, place, scale / DIGITS, few);
          if (all > FEW_ELEMENTS)
            doubt |= lost;
          else if (any(lost))
            y = lost ? from.log_sum_exp(sample, place, s) : y;
        }
      }
      bad |= some & infinite(y);
      if (plan.op != POWER) kept[0] = y;
      kept[1] = around.top, kept[2] = nothing ? splat<V>(1) : Lane<C>::narrow(sums[0]);
    }
    storeu(v.y + o * L, keep(y, some));
    if (save && v.aux)
      for (int c = 0; c < (plan.op == MEAN ? 0 : power ? 1 : 3); ++c)
        storeu(v.aux + c * v.component + o * v.as, some ? kept[c] : splat<V>(1));
  };
  int64_t place[3];
  if (plain && !from.mask) {
    using S1 = Sums<C, 1>;
    Buffers<S1> buffer(f, scratch);
    for (int64_t i = 0; i < f.in; ++i) {
      V x = from.x(i);
      W w = Lane<C>::wide(power ? positive<C>(x, s) : x);
      buffer.a[i].s[0] = power == 3 ? w * w * w : power == 2 ? w * w : w;
    }
    const S1* sums = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
    for (int64_t o = 0; o < f.out; ++o) {
      int64_t all = all_of(f, sample, o, place);
      finish(o, sums[o].s, splat<V>(all), place, all);
    }
    return any(bad);
  }
  Buffers<S> buffer(f, scratch);
  for (int64_t i = 0; i < f.in; ++i) {
    M m = from.counts(i);
    V x = from.x(i);
    S& to = buffer.a[i];
    if (plain) {
      W w = Lane<C>::wide(keep(power ? positive<C>(x, s) : x, m));
      to.s[0] = power == 3 ? w * w * w : power == 2 ? w * w : w;
      to.s[1] = Lane<C>::zero();
    } else {
      W e = Lane<C>::wide(around.weight(x, m));
      to.s[0] = e;
      to.s[1] = plan.op == SOFT ? e * Lane<C>::wide(keep(x, m)) : Lane<C>::wide(around.weight_m1(x, m));
    }
    to.s[2] = Lane<C>::wide(__builtin_convertvector(-m, V));
  }
  const S* sums = fold_all(f, sample, buffer.a, buffer.b, buffer.suffix);
  for (int64_t o = 0; o < f.out; ++o) {
    int64_t all = all_of(f, sample, o, place);
    finish(o, sums[o].s, all ? Lane<C>::narrow(sums[o].s[2]) : V{}, place, all);
    if (any(doubt)) return tilted_forward<C>(from, sample, around, save, scratch);
  }
  return any(bad);
}

}  // namespace

template <class C>
bool folds_forward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>& s, bool save, Scratch& scratch) {
  if (plan.op == MAX)
    return plan.last ? max_forward<C, true>(plan, f, sample, v, scratch) : max_forward<C, false>(plan, f, sample, v, scratch);
  if constexpr (!std::is_same_v<C, int64_t>) return sum_forward<C>(plan, f, sample, v, s, save, scratch);
  return true;
}

template <class C>
bool folds_backward(const Plan& plan, const Fold& f, int64_t sample, const View<C>& v, const Setting<C>& s, Scratch& scratch) {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  using S = Sums<C, 2>;
  constexpr int L = Lane<C>::L;
  if (plan.op == MAX) {
    const int32_t* won = static_cast<const int32_t*>(v.won);
    for (int64_t o = 0; o < f.out; ++o)
      for (int i = 0; i < L; ++i) {
        const int32_t at = won[o * v.as + i];
        if (at >= 0) v.dx[(int64_t)at * L + i] += v.y[o * L + i];
      }
    return false;
  }
  const Elements<C> from(plan, f, v);
  const int power = plan.op == POWER ? special_power(s) : 0;
  const bool plain = plan.op == MEAN || (power && !v.slope);
  Around<C> around(plan, s);
  const bool squares = power == 2 || power == 3;
  if (!plain) {
    around.prepare(from, f.in);
    if (any(around.bad | around.far)) return true;
    if (power) return true;  // such windows kept y alone, and the slope by p needs the sums
  }
  Scratch other;
  Buffers<Sums<C, 1>>* counted = nullptr;
  const Sums<C, 1>* numbers = nullptr;
  alignas(Buffers<Sums<C, 1>>) char place_for_counted[sizeof(Buffers<Sums<C, 1>>)];
  if (from.mask && plain) {
    counted = new (place_for_counted) Buffers<Sums<C, 1>>(f, other);
    for (int64_t i = 0; i < f.in; ++i) counted->a[i].s[0] = Lane<C>::wide(__builtin_convertvector(-from.mask[i], V));
    numbers = fold_all(f, sample, counted->a, counted->b, counted->suffix);
  }
  Buffers<S> buffer(f, scratch);
  int64_t place[3];
  for (int64_t o = 0; o < f.out; ++o) {
    const int64_t all = all_of(f, sample, o, place);
    V g = loadu<V>(v.y + o * L);
    if (all == 0) g = V{};
    g = keep(g, from.there(o));
    S& to = buffer.a[o];
    to.s[0] = to.s[1] = Lane<C>::zero();
    if (plain) {
      V number = numbers ? Lane<C>::narrow(numbers[o].s[0]) : splat<V>(all);
      g = keep(g, (M)(number > 0));
      V n = largest(number, splat<V>(1));
      if (plan.op == MEAN) {
        to.s[0] = Lane<C>::wide(g) / divisor<C>(plan, f, sample, place, all ? all : 1, n);
      } else {
        V y = loadu<V>(v.aux + o * v.as);
        M zero = (M)(y == 0);
        W w = plan.sum ? Lane<C>::wide(g) : Lane<C>::wide(g) / Lane<C>::wide(n);
        W wy = restore_digits<C>(zero ? splat<V>(1) : y);
        if (squares) {
          w = power == 2 ? w / wy : w / (wy * wy);
          w = w * Lane<C>::wide(zero ? V{} : splat<V>(1));
        }
        to.s[0] = w;
      }
    } else {
      V y = loadu<V>(v.aux + o * v.as), total = loadu<V>(v.aux + 2 * v.component + o * v.as);
      W w = Lane<C>::wide(g) / Lane<C>::wide(total), wy = Lane<C>::wide(y);
      if (plan.op == POWER) {
        w = w * restore_digits<C>(y);
        const V size = magnitude<C>(y);
        wy = Lane<C>::wide(logarithm(size > 0 ? size : splat<V>(1)) - (y < 0 ? splat<V>(std::log(C(SCALE))) : V{}));
      }
      to.s[0] = w;
      to.s[1] = w * wy;
    }
  }
  const S* back = spread_all(f, sample, buffer.a, buffer.b, buffer.suffix);
  W slope = Lane<C>::zero();
  for (int64_t i = 0; i < f.in; ++i) {
    M m = from.counts(i);
    V d;
    const W a = back[i].s[0], b = back[i].s[1];
    if (plan.op == MEAN) {
      d = Lane<C>::narrow(a);
    } else {
      V x = keep(from.x(i), m);
      if (plan.op == POWER) {
        if (any(infinite(x)))  // what no window holds may be NaN
          x = keep(x, (M)(Lane<C>::narrow(each(a, [](double share) { return share != 0 ? 1.0 : 0.0; })) != 0));
        V value = positive<C>(x, s);
        M out = s.abs ? (M)(value == 0) : (M)(x < splat<V>(s.eps));
        if (power) {
          W w = Lane<C>::wide(value);
          d = Lane<C>::narrow(power == 1 ? a : power == 2 ? a * w : a * w * w);
        } else {
          W e = Lane<C>::wide(around.weight(x, m));
          V safe = value > 0 ? value : splat<V>(1);
          d = Lane<C>::narrow(e * a / Lane<C>::wide(safe));
          if (v.slope) slope = slope + e * (Lane<C>::wide(logarithm(safe)) * a + Lane<C>::all(-1) * b) / Lane<C>::wide(s.p);
        }
        if (s.abs) d = x < 0 ? -d : d;
        d = keep(d, (M)~out);
      } else {
        W e = Lane<C>::wide(around.weight(x, m)), wx = Lane<C>::wide(x), beta = Lane<C>::wide(s.p), minus = Lane<C>::all(-1);
        if (plan.op == SOFT) {
          W lean = wx * a + minus * b;
          d = Lane<C>::narrow(s.authors ? e * a : e * (a + beta * lean));
          if (v.slope) slope = slope + e * wx * lean;
        } else {
          d = Lane<C>::narrow(e * a);
          if (v.slope) slope = slope + e * (wx * a + minus * b) / beta;
        }
      }
    }
    storeu(v.dx + i * L, loadu<V>(v.dx + i * L) + keep(d, m));
  }
  if (v.slope) {
    double parts[L];
    std::memcpy(parts, &slope, sizeof parts);
    for (int i = 0; i < L; ++i) v.slope[i] += parts[i];
  }
  return false;
}

template bool folds_forward<float>(const Plan&, const Fold&, int64_t, const View<float>&, const Setting<float>&, bool, Scratch&);
template bool folds_forward<double>(const Plan&, const Fold&, int64_t, const View<double>&, const Setting<double>&, bool, Scratch&);
template bool folds_forward<int64_t>(const Plan&, const Fold&, int64_t, const View<int64_t>&, const Setting<int64_t>&, bool, Scratch&);
template bool folds_backward<float>(const Plan&, const Fold&, int64_t, const View<float>&, const Setting<float>&, Scratch&);
template bool folds_backward<double>(const Plan&, const Fold&, int64_t, const View<double>&, const Setting<double>&, Scratch&);

}  // namespace everypool
