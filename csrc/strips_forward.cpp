// Lines along several axes of one map, in one read: a few rows at a time are read vector by vector, and every vector goes to
// the state of its row and to those of its columns.
#include "strips.h"

namespace everypool {
namespace {

// ---- states: what is known of the lines met so far. `see` takes element number `i` of each lane's line. ------------------

EP_INLINE Wide joined_sums(vd* rows, float) { return {transposed_sum(rows), transposed_sum(rows + LD)}; }
EP_INLINE vd joined_sums(vd* rows, double) { return transposed_sum(rows); }

template <class C> struct Total {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr bool wins = false;
  struct Columns {
    W s;
    static EP_INLINE Columns nothing() { return {Lane<C>::zero()}; }
    EP_INLINE void see(W w, M) { s = s + w; }
  };
  struct Row {  // its elements' lanes are added up at the end
    vd s;
    static EP_INLINE Row nothing() { return {vd{}}; }
    EP_INLINE void see(W w, M) { s = s + halves(w); }
  };
  static EP_INLINE W lift(V x) { return Lane<C>::wide(x); }
  static EP_INLINE V without(V x, M lanes) { return keep(x, ~lanes); }
  static EP_INLINE Columns across(Row* rows) {
    vd sums[Lane<C>::L];
    for (int i = 0; i < Lane<C>::L; ++i) sums[i] = rows[i].s;
    return {joined_sums(sums, C{})};
  }
  static EP_INLINE V value(const Columns& c, double scale) { return Lane<C>::narrow(c.s * Lane<C>::all(scale)); }
};

template <class C> struct Largest {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr bool wins = false;
  struct Columns {
    V v;
    static EP_INLINE Columns nothing() { return {splat<V>(lowest<C>())}; }
    EP_INLINE void see(V x, M) { v = x != x ? x : largest(x, v); }
  };
  using Row = Columns;
  static EP_INLINE V lift(V x) { return x; }
  static EP_INLINE V without(V x, M) { return x; }  // to meet an element twice does not change a maximum
  static EP_INLINE Columns across(Row* rows) {
    V v[Lane<C>::L];
    for (int i = 0; i < Lane<C>::L; ++i) v[i] = rows[i].v;
    transpose(v);
    Columns all = Columns::nothing();
    for (int i = 0; i < Lane<C>::L; ++i) all.see(v[i], M{});
    return all;
  }
  static EP_INLINE V value(const Columns& c, double) { return c.v; }
};

// The number of the element that has won, too: the first or the last of equals, and the last of those that are NaN.
template <class C, bool LAST> struct Winner {
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr bool wins = true;
  struct Columns {
    V v;
    M i;
    static EP_INLINE Columns nothing() { return {splat<V>(lowest<C>()), M{}}; }
    EP_INLINE void take(M better, V x, M number) {
      v = better ? x : v;
      i = better ? number : i;
    }
    EP_INLINE void see(V x, M number) { take((M)(LAST ? x >= v : x > v) | (M)(x != x), x, number); }
    // of another part of the line, which may lie before, behind or between
    EP_INLINE void join(V x, M number) {
      const M nan = (M)(x != x), behind = (M)(number > i);
      const M equal = (M)(x == v) & (LAST ? behind : (M)(number < i));
      take((M)(x > v) | equal | (nan & (behind | (M)(v == v))), x, number);
    }
  };
  struct Row : Columns {
    static EP_INLINE Row nothing() { return {{splat<V>(lowest<C>()), lane_numbers<M>()}}; }
  };
  static EP_INLINE V lift(V x) { return x; }
  static EP_INLINE V without(V x, M) { return x; }
  static EP_INLINE Columns across(Row* rows) {
    V v[Lane<C>::L], i[Lane<C>::L];
    for (int r = 0; r < Lane<C>::L; ++r) v[r] = rows[r].v, i[r] = (V)rows[r].i;
    transpose(v);
    transpose(i);
    Columns all{v[0], (M)i[0]};
    for (int r = 1; r < Lane<C>::L; ++r) all.join(v[r], (M)i[r]);
    return all;
  }
  static EP_INLINE V value(const Columns& c, double) { return c.v; }
};

// ---- forward ---------------------------------------------------------------------------------------------------------------

template <class T, class Op, int LINES> class Forward {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using Columns = typename Op::Columns;
  using Row = typename Op::Row;
  static constexpr int L = Lane<C>::L;
  static constexpr bool deep = LINES & DEEP, tall = LINES & TALL, flat = LINES & FLAT;
  static constexpr int TOGETHER = std::min(L, 4);  // rows whose states fit the registers

 public:
  Forward(const Plan& plan, const Map& map, const Call& call)
      : D(map.n[DEPTH]), H(map.n[HEIGHT]), W(map.n[WIDTH]), words_((W + L - 1) / L), x_(static_cast<const T*>(call.x)) {
    for (int a = 0; a < 3; ++a) {
      if (map.fold[a] < 0) continue;
      y_[a] = static_cast<T*>(call.y[map.fold[a]]);
      won_[a] = static_cast<int32_t*>(call.aux[map.fold[a]]);
      scale_[a] = scale(plan, map.n[a]);
    }
    tall_ = static_cast<Columns*>(memory_.take((1 + (deep ? H : 0)) * words_ * (int64_t)sizeof(Columns))), deep_ = tall_ + words_;
  }

  void plane(int64_t number) {
    const T* x = x_ + number * D * H * W;
    if (deep) std::fill(deep_, deep_ + H * words_, Columns::nothing());
    for (int64_t d = 0; d < D; ++d, x += H * W) {
      if (tall) std::fill(tall_, tall_ + words_, Columns::nothing());
      for (int64_t h = 0; h < H; h += L) {
        Row rows[L];
        const int64_t count = std::min<int64_t>(L, H - h);
        int64_t i = 0;
        for (; i + TOGETHER <= count; i += TOGETHER) lines<TOGETHER>(x, d, h + i, rows + i);
        for (; i < count; ++i) lines<1>(x, d, h + i, rows + i);
        for (; i < L; ++i) rows[i] = Row::nothing();
        if (flat) store(WIDTH, (number * D + d) * H + h, Op::across(rows), count);
      }
      if (tall) store_all(HEIGHT, (number * D + d) * W, tall_, 1);
    }
    if (deep) store_all(DEPTH, number * H * W, deep_, H);
  }

 private:
  // R rows from h on: the columns' states are read and written once for all of them.
  template <int R> EP_INLINE void lines(const T* x, int64_t d, int64_t h, Row* to) {
    Row rows[R];
    for (int i = 0; i < R; ++i) rows[i] = Row::nothing();
    x += h * W;
    for (int64_t k = 0; k < W / L; ++k) vectors<R, false>(x, d, h, k, rows);
    if (W % L > 0) vectors<R, true>(x, d, h, W / L, rows);
    for (int i = 0; i < R; ++i) to[i] = rows[i];
  }
  // OVER: the last vector of a row begins within the one before it
  template <int R, bool OVER> EP_INLINE void vectors(const T* x, int64_t d, int64_t h, int64_t k, Row* rows) {
    const int64_t at = OVER ? W - L : k * L;
    const M lanes = lane_numbers<M>(), seen = lanes < (int)(k * L - at);
    Columns column = tall_[k];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      prefetch(x + i * W + at, R * W * sizeof(T));
      const V value = load_as(x + i * W + at);
      const auto v = Op::lift(value);
      if (tall) column.see(v, splat<M>(h + i));
      if (deep) deep_[(h + i) * words_ + k].see(v, splat<M>(d));
      if (flat) rows[i].see(OVER ? Op::lift(Op::without(value, seen)) : v, lanes + splat<M>(at));
    }
    if (tall) tall_[k] = column;
  }

  EP_INLINE void store(Along along, int64_t at, const Columns& state, int64_t count) const {
    using Numbers = typename Packed<int32_t, L>::type;
    const V value = Op::value(state, scale_[along]);
    if (count == L)
      store_as(y_[along] + at, value);
    else
      store_part(y_[along] + at, value, count);
    if constexpr (Op::wins) {
      const Numbers numbers = __builtin_convertvector(state.i, Numbers);
      std::memcpy(won_[along] + at, &numbers, 4 * count);
    }
  }
  void store_all(Along along, int64_t at, const Columns* states, int64_t rows) const {
    for (int64_t row = 0; row < rows; ++row, at += W)
      for (int64_t k = 0; k < words_; ++k) store(along, at + std::min(k * L, W - L), *states++, L);
  }

  const int64_t D, H, W, words_;
  const T* x_;
  T* y_[3] = {};
  int32_t* won_[3] = {};
  double scale_[3] = {};
  Scratch memory_;
  Columns *tall_, *deep_;  // one for each vector of a row; of every row
};

template <class T, class Op> bool forward(const Plan& plan, const Map& map, const Call& call) {
  return each_plane(map, [&](auto lines) { return Forward<T, Op, lines>(plan, map, call); });
}

}  // namespace

bool strips_values(const Plan& plan, const Map& map, const Call& call) {
  return with_real(plan.type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    if (plan.op == MEAN) return forward<T, Total<C>>(plan, map, call);
    if (!call.save) return forward<T, Largest<C>>(plan, map, call);
    return plan.last ? forward<T, Winner<C, true>>(plan, map, call) : forward<T, Winner<C, false>>(plan, map, call);
  });
}

}  // namespace everypool
