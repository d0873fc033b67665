// Values of sliding windows: rows are folded into one another first, then every row of the results along itself.
#include "rows_weights.h"

namespace everypool {
namespace {

struct Largest {
  using E = float;
  using V = vf;
  using Part = vf;  // a vector of E
  static constexpr bool mean = false, power = false, few = false;
  static E neutral() { return lowest<float>(); }
  static EP_INLINE V lift(vf x) { return x; }
  EP_INLINE V map(vf x) const { return x; }
  static EP_INLINE V load(const E* p) { return loadu<vf>(p); }
  static EP_INLINE void store(E* p, V v) { storeu(p, v); }
  static EP_INLINE V merge(V a, V b) { return largest(a, b); }
  static EP_INLINE vf finish(V v, const E*) { return v; }
  template <int S> static EP_INLINE V every(const E* p, int64_t stride) { return strided<S, vf>(p, stride); }
};

struct Total {
  using E = double;
  using V = Wide;
  using Part = vd;
  static constexpr bool mean = true, power = false, few = false;
  typedef float Half __attribute__((vector_size(EP_BYTES / 2)));
  static E neutral() { return 0; }
  static EP_INLINE V lift(vf x) { return widened(x); }
  EP_INLINE V map(vf x) const { return widened(x); }
  template <class T> EP_INLINE V read(const T* p) const { return widened(load_as(p)); }
  EP_INLINE V read(const float* p) const {  // two loads and two conversions, no lanes cross
    return {__builtin_convertvector(loadu<Half>(p), vd), __builtin_convertvector(loadu<Half>(p + LD), vd)};
  }
  static EP_INLINE V load(const E* p) { return {loadu<vd>(p), loadu<vd>(p + LD)}; }
  static EP_INLINE void store(E* p, V v) { storeu(p, v.lo), storeu(p + LD, v.hi); }
  static EP_INLINE V merge(V a, V b) { return a + b; }
  static EP_INLINE vf finish(V v, const E* scale) { return narrowed(v * load(scale)); }
  template <int S> static EP_INLINE V every(const E* p, int64_t stride) {
    const int64_t s = S == 0 ? stride : S;
    return {strided<S, vd>(p, stride), strided<S, vd>(p + s * LD, stride)};
  }
};

// Sums of so few elements that float holds them well enough, unless it overflows.
struct FewTotal {
  using E = float;
  using V = vf;
  using Part = vf;
  static constexpr bool mean = true, power = false, few = true;
  static E neutral() { return 0; }
  static EP_INLINE V lift(vf x) { return x; }
  EP_INLINE V map(vf x) const { return x; }
  template <class T> EP_INLINE V read(const T* p) const { return load_as(p); }
  static EP_INLINE V load(const E* p) { return loadu<vf>(p); }
  static EP_INLINE void store(E* p, V v) { storeu(p, v); }
  static EP_INLINE V merge(V a, V b) { return a + b; }
  static EP_INLINE vf finish(V v, const E* scale) { return v * load(scale); }
  template <int S> static EP_INLINE V every(const E* p, int64_t stride) { return strided<S, vf>(p, stride); }
};

// Sums of powers in double: they neither overflow nor vanish for what float holds.
template <int P> struct Powers : Total {
  static constexpr bool power = true;
  Setting<float> setting;
  EP_INLINE V map(vf x) const {
    const Wide w = widened(positive<float>(x, setting));
    return P == 2 ? w * w : w * w * w;
  }
  template <class T> EP_INLINE V read(const T* p) const { return map(load_as(p)); }
  static EP_INLINE vf finish(V v, const E* scale) {
    const Wide mean = v * load(scale);
    return narrowed(P == 2 ? root(mean) : cube_root(mean));
  }
};

// Merges groups of S lanes that lie side by side: S vectors become one.
template <int S> EP_INLINE vf merge_groups(const vf* v, Largest) {
  if constexpr (S == 4) {
    const vf half[2] = {merge_groups<2>(v, Largest{}), merge_groups<2>(v + 2, Largest{})};
    return merge_groups<2>(half, Largest{});
  } else {
    const vf two = largest(phase<0, S>(v), phase<1, S>(v));
    return S == 3 ? largest(two, phase<S - 1, S>(v)) : two;
  }
}
template <int S, class P> EP_INLINE P sum_groups(const P* v) {
  if constexpr (S == 4) {
    const P half[2] = {sum_groups<2>(v), sum_groups<2>(v + 2)};
    return sum_groups<2>(half);
  } else {
    const P two = phase<0, S>(v) + phase<1, S>(v);
    return S == 3 ? two + phase<S - 1, S>(v) : two;
  }
}
template <int S> EP_INLINE vf merge_groups(const vf* v, FewTotal) { return sum_groups<S>(v); }
template <int S> EP_INLINE Wide merge_groups(const Wide* v, Total) {
  vd part[2 * S];
  for (int i = 0; i < S; ++i) part[2 * i] = v[i].lo, part[2 * i + 1] = v[i].hi;
  return {sum_groups<S>(part), sum_groups<S>(part + S)};
}

constexpr int MOST_TAPS = 96;
constexpr float LEAST = 1e-12f, MOST = 1e15f;  // power means beyond that have a gradient that float cannot hold on the way
constexpr int DIRECT_ROWS = 6;   // more rows than that are folded step by step
constexpr int DIRECT_TAPS = 8;   // of a sum

// the taps' vectors, element by element
template <class Op> void merge_flat(const typename Op::E* const* taps, int m, int64_t count, typename Op::E* to) {
  with_constant<2, 3, 4, 5>(m, [&](auto M) {
    const Pointers<M, const typename Op::E*> tap(taps, m);
    for (int64_t j = 0; j < count; j += LF) {
      typename Op::V v = Op::load(tap[0] + j);
#pragma GCC unroll 8
      for (int t = 1; t < tap.size; ++t) v = Op::merge(v, Op::load(tap[t] + j));
      Op::store(to + j, v);
    }
  });
}

// Folds runs of `kernel` elements, `unit` apart, until few taps together are the whole run. The first `extent` elements hold rows.
int few_taps(Largest, float* tile, float*, int64_t extent, int64_t unit, int64_t kernel, const float** tap) {
  int64_t radix = 5;
  for (int64_t r = 4; r >= 2; --r)  // the least radix that needs no more steps
    if (r * r >= kernel && kernel > 5) radix = r;
  for (int64_t width = 1;;) {
    const int64_t m = std::min(radix, (kernel + width - 1) / width), next = std::min(m * width, kernel);
    for (int64_t j = 0; j < m; ++j) tap[j] = tile + unit * std::min(j * width, next - width);
    if (next == kernel) return (int)m;
    merge_flat<Largest>(tap, (int)m, extent - unit * (next - 1), tile);
    width = next;
  }
}
template <class Sum, class E> int few_taps(Sum, E* tile, E* spare, int64_t extent, int64_t unit, int64_t kernel, const E** tap) {
  int64_t width = 1;  // spare: sums of `width` elements
  if (kernel > DIRECT_TAPS)
    for (int64_t w = 2; w < kernel; ++w)
      if (w + kernel / w + kernel % w < width + kernel / width + kernel % width) width = w;
  int64_t done = 0;
  int m = 0;
  if (width > 1) {
    for (int64_t j = 0; j < width; ++j) tap[j] = tile + unit * j;
    merge_flat<Sum>(tap, (int)width, extent - unit * (width - 1), spare);
    for (; done + width <= kernel; done += width) tap[m++] = spare + unit * done;
  }
  for (; done < kernel; ++done) tap[m++] = tile + unit * done;
  return m;
}

template <class T, class Op> class Values {
  using E = typename Op::E;
  using V = typename Op::V;

 public:
  Values(const Plan& plan, const Grid& grid, const Call& call, const Units& units)
      : plan_(plan), g_(grid), units_(units), x_(static_cast<const T*>(call.x)), y_(static_cast<T*>(call.y[0])) {
    if constexpr (Op::power) {
      op_.setting = {splat<vf>(1), (float)plan.eps, plan.sign == ABS, plan.sum, false};
      if (call.save) kept_ = kept_of(call);
    }
    x_end_ = x_ + g_.planes * g_.in;
    const Line &h = g_.h, &w = g_.w;
    const int64_t rows = g_.d.kernel * h.kernel;
    tall_ = g_.d.kernel == 1 && h.kernel > DIRECT_ROWS;
    groups_ = w.stride == w.kernel && w.stride >= 2 && w.stride <= 4 && w.whole() && rows <= 16;
    columns_ = w.out;
    if (w.out * w.stride > 2 * ROWS_WIDE) columns_ = round_up(std::max<int64_t>((ROWS_WIDE - w.kernel) / w.stride, 1), LF);
    pitch_ = round_up(round_up(w.left, LF) + w.kernel + std::max(round_up(columns_, LF) * w.stride, columns_ * w.stride + w.kernel), LF) + LF;
    lines_ = std::max<int64_t>(ROWS_TILE / (pitch_ * (int64_t)sizeof(E)), 1);
    if (tall_) lines_ = std::max(lines_ / h.stride, h.kernel);
    lines_ = std::min(lines_, h.out);
    size_ = pitch_ * (tall_ ? (lines_ - 1) * h.stride + h.kernel : lines_) + w.kernel + 2 * LF;
    divide();
  }

  // false: a power mean is infinite, or so large or small that its gradient needs more care
  bool run(int64_t begin, int64_t end) {
    const int64_t spare = Op::mean ? size_ : 0, scale = Op::mean ? round_up(g_.w.out, LF) + LF : 0;
    if (!groups_) tile_ = static_cast<E*>(memory_.take((size_ + spare) * sizeof(E))), spare_ = tile_ + size_;
    if (Op::mean) {  // vectors reach beyond the factors: lanes that only hold what is written over, but are computed
      scale_ = static_cast<E*>(scales_.take(scale * sizeof(E))), scaled_ = 0;
      std::fill_n(scale_, scale, E{});
    }
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t slice = units_.plane(unit);
      plane_ = x_ + slice / g_.d.out * g_.in, d_ = slice % g_.d.out;
      out_ = y_ + slice * g_.h.out * g_.w.out;
      band(units_.low(unit), units_.high(unit));
    }
    return !any(bad_);
  }

 private:
  const Plan& plan_;
  const Grid& g_;
  const Units& units_;
  const T* x_;
  T* y_;
  const T* x_end_;
  bool tall_, groups_;
  int64_t columns_, lines_, pitch_, size_;  // of a tile
  std::vector<double> by_[3];               // factors of a mean
  Scratch memory_, scales_;
  E *tile_ = nullptr, *spare_ = nullptr, *scale_ = nullptr;
  double scaled_ = 0;  // the factor of the row that scale_ holds
  // the plane at hand
  const T* plane_ = nullptr;
  int64_t d_ = 0;
  T* out_ = nullptr;
  vi nan_{}, bad_{};
  Op op_;
  float* kept_ = nullptr;  // of power means

  void divide() {
    if (Op::mean)
      for (int a = 0; a < 3; ++a) by_[a] = factors(plan_, a);
  }
  void scale_for(int64_t h) {
    const double row = by_[0][d_] * by_[1][h];
    if (row == scaled_) return;
    for (int64_t o = 0; o < g_.w.out; ++o) scale_[o] = (E)(row * by_[2][o]);
    scaled_ = row;
  }

  void band(int64_t low, int64_t high) {
    nan_ = vi{};
    if (groups_) {
      with_constant<2, 3>(g_.w.stride, [&](auto S) { group_rows<S == 0 ? 4 : S>(low, high); });
    } else {
      for (int64_t h = low; h < high; h += lines_)
        for (int64_t c = 0; c < g_.w.out; c += columns_) fold_tile(h, std::min(h + lines_, high), c, std::min(c + columns_, g_.w.out), high);
    }
    if (Op::few ? any(nan_) : !Op::mean && any(nan_)) define(low, high);
  }

  // ---- rows into one another ----------------------------------------------------------------------------------------------

  // the rows of the windows of row h, from a column on
  int rows_of(int64_t h, int64_t column, const T** row) const {
    int m = 0;
    for (int64_t d = g_.d.first(d_); d < g_.d.end(d_); ++d) {
      const T* at = plane_ + (d * g_.h.n + g_.h.first(h)) * g_.w.n + column;
      for (int64_t r = g_.h.first(h); r < g_.h.end(h); ++r, at += g_.w.n) row[m++] = at;
    }
    return m;
  }
  template <int M> EP_INLINE V fold_at(const Pointers<M, const T*>& row, int64_t at, vi& nan) const {
    if constexpr (Op::mean) {
      V v = op_.read(row[0] + at);
#pragma GCC unroll 8
      for (int r = 1; r < row.size; ++r) v = Op::merge(v, op_.read(row[r] + at));
      return v;
    } else {  // the instruction drops NaN: two rows are looked at in one comparison
      vf v = load_as(row[0] + at);
      const vf odd = v;
      int r = 1;
#pragma GCC unroll 8
      for (; r + 1 < row.size; r += 2) {
        const vf a = load_as(row[r] + at), b = load_as(row[r + 1] + at);
        nan |= unordered(a, b);
        v = largest(v, largest(a, b));
      }
      if (r < row.size) {
        const vf a = load_as(row[r] + at);
        nan |= unordered(odd, a);
        return largest(v, a);
      }
      nan |= unordered(odd, odd);
      return v;
    }
  }
  // `count` elements of `lines` rows of a tile, each from m rows of x; the next ones' lie `step` elements on
  template <int M> vi fold_lines(const T* const* rows, int m, int64_t step, int64_t lines, int64_t count, E* to) const {
    vi nan{};
    Pointers<M, const T*> row(rows, m);
    for (int64_t line = 0; line < lines; ++line, to += pitch_, row.advance(step))
      for (int64_t j = 0; j < count; j += LF) Op::store(to + j, fold_at<M>(row, j, nan));
    return nan;
  }
  void fold_rows(const T* const* rows, int m, int64_t step, int64_t lines, int64_t count, E* to) {
    // vectors may reach into the next row, but not beyond the last plane
    int64_t room = x_end_ - (rows[m - 1] + round_up(count, LF));
    int64_t safe = count % LF == 0 ? lines : room < 0 ? 0 : std::min(lines, room / step + 1);
    if (safe > 0)
      with_taps(m, [&](auto M) { nan_ |= fold_lines<M>(rows, m, step, safe, count, to); });
    for (; safe < lines; ++safe) fold_part(rows, m, safe * step, count, to + safe * pitch_);
  }
  void fold_part(const T* const* row, int m, int64_t at, int64_t count, E* to) {
    for (int64_t j = 0; j < count; j += LF)
      Op::store(to + j, fold_some(row, m, at + j, std::min<int64_t>(count - j, LF)));
  }
  V fold_some(const T* const* row, int m, int64_t at, int64_t number) {
    V v = Op::lift(splat<vf>((float)Op::neutral()));
    for (int r = 0; r < m; ++r) {
      const vf x = load_part(row[r] + at, number);
      nan_ |= unordered(x, x);
      v = Op::merge(v, op_.map(x));
    }
    return v;
  }
  void pad(const Span& s, int64_t rows) {
    const V v = Op::lift(splat<vf>((float)Op::neutral()));
    s.fill(tile_, pitch_, rows, v, v, [](E* p, V v) __attribute__((always_inline)) { Op::store(p, v); });
  }
  void stack(int64_t low, int64_t high, const Span& s) {
    const T* row[64];
    for (int64_t h = low, next; h < high; h = next) {
      const int m = rows_of(h, s.from, row);
      next = rows_alike(h, high);
      fold_rows(row, m, g_.h.stride * g_.w.n, next - h, s.to - s.from, tile_ + (h - low) * pitch_ + s.lead);
    }
    pad(s, high - low);
  }
  // for many rows: all of them once, then step by step
  void stack_tall(int64_t low, int64_t high, const Span& s) {
    const Line& h = g_.h;
    const int64_t begin = h.begin(low), end = h.begin(high - 1) + h.kernel, first = h.first(low), last = h.end(high - 1);
    const T* row = plane_ + (d_ * h.n + first) * g_.w.n + s.from;
    fold_rows(&row, 1, g_.w.n, last - first, s.to - s.from, tile_ + (first - begin) * pitch_ + s.lead);
    for (int64_t r = begin; r < end; ++r)
      if (r < first || r >= last)
        for (int64_t j = 0; j < s.to - s.from; j += LF)
          Op::store(tile_ + (r - begin) * pitch_ + s.lead + j, Op::lift(splat<vf>((float)Op::neutral())));
    pad(s, end - begin);
    const E *tap[MOST_TAPS], *at[MOST_TAPS];
    const int m = few_taps(Op{}, tile_, spare_, (end - begin) * pitch_, pitch_, h.kernel, tap);
    if (h.stride == 1) return merge_flat<Op>(tap, m, (high - low) * pitch_, tile_);
    for (int64_t o = 0; o < high - low; ++o) {
      for (int t = 0; t < m; ++t) at[t] = tap[t] + o * h.stride * pitch_;
      merge_flat<Op>(at, m, pitch_, tile_ + o * pitch_);
    }
  }

  // loops of their own for what is common; the more of them, the longer they take to compile
  template <class F> static EP_INLINE void with_strides(int64_t stride, const F& f) {
    if constexpr (Op::power)
      with_constant<2>(stride, f);
    else
      with_constant<1, 2>(stride, f);
  }
  template <class F> static EP_INLINE void with_taps(int64_t m, const F& f) {
    if constexpr (Op::power)
      with_constant<2>(m, f);
    else if constexpr (std::is_same_v<T, float>)
      with_constant<1, 2, 3, 4, 5>(m, f);
    else
      with_constant<2, 3>(m, f);
  }

  // ---- along the rows -----------------------------------------------------------------------------------------------------

  void fold_tile(int64_t low, int64_t high, int64_t left, int64_t right, int64_t last) {
    const Line& w = g_.w;
    const int64_t count = right - left, rows = high - low;
    const Span s(w.begin(left), (count - 1) * w.stride + w.kernel, w.n, w.left);
    if (tall_)
      stack_tall(low, high, s);
    else
      stack(low, high, s);
    const E* tap[MOST_TAPS];
    const int m = few_taps(Op{}, tile_, spare_, rows * pitch_ + w.kernel - 1, 1, w.kernel, tap);
    // a vector may reach into the rows to come, which are written later
    T* const y = out_ + low * w.out + left;
    const T* const end = out_ + last * w.out;
    int64_t safe = count % LF == 0 ? rows : columns_ < w.out ? 0 : std::max<int64_t>((end - y - round_up(count, LF)) / w.out + 1, 0);
    if (end - y < round_up(count, LF)) safe = count % LF == 0 ? rows : 0;
    safe = std::min(safe, rows);
    with_strides(w.stride, [&](auto S) {
      with_taps(m, [&](auto M) {
        Pointers<M, const E*> at(tap, m, s.first);
        for (int64_t r = 0; r < rows; ++r, at.advance(pitch_)) {
          if (Op::mean) scale_for(low + r);
          finish_row<S, M>(at, r < safe ? count : count / LF * LF, count, scale_ + left, y + r * w.out);
        }
      });
    });
  }
  // vectors up to `full`, then what is left of `count`
  // `number` results of a vector; power means are kept and looked at, but for those that the next row writes over
  EP_INLINE void put(T* y, V v, const E* scale, int64_t number = LF, int64_t meant = LF) {
    const vf result = Op::finish(v, scale);
    number == LF ? store_as(y, result) : store_part(y, result, number);
    if constexpr (!Op::few && !Op::power) return;
    const vi there = std::min(number, meant) >= LF ? splat<vi>(-1) : until(std::min(number, meant));
    if constexpr (Op::few) nan_ |= infinite(result) & there;
    if constexpr (Op::power) {
      bad_ |= (kept_ ? (vi)(result != 0) & ~((vi)(result > LEAST) & (vi)(result < MOST)) : infinite(result)) & there;
      if (kept_) number == LF ? storeu(kept_ + (y - y_), result) : store_part(kept_ + (y - y_), result, number);
    }
  }
  template <int S, int M> EP_INLINE void finish_row(const Pointers<M, const E*>& tap, int64_t full, int64_t count, const E* scale, T* y) {
    const int64_t stride = S ? S : g_.w.stride;
    const auto step = [&](int64_t o) __attribute__((always_inline)) {
      V v = Op::template every<S>(tap[0] + o * stride, stride);
#pragma GCC unroll 8
      for (int t = 1; t < tap.size; ++t) v = Op::merge(v, Op::template every<S>(tap[t] + o * stride, stride));
      return v;
    };
    int64_t o = 0;
    for (; o < full; o += LF) put(y + o, step(o), scale + o, LF, count - o);
    if (o < count) put(y + o, step(o), scale + o, count - o);
  }

  // Windows of S columns side by side, rows unpadded: no tile.
  template <int S> void group_rows(int64_t low, int64_t high) {
    const T* rows[64];
    const int64_t out = g_.w.out, step = g_.h.stride * g_.w.n;
    for (int64_t h = low, next; h < high; h = next) {
      const int m = rows_of(h, 0, rows);
      next = rows_alike(h, high);
      int64_t whole = next - h;
      if (out < LF) {  // vectors reach into the rows to come, as far as there are any
        const int64_t room = x_end_ - (rows[m - 1] + S * LF), room_out = (high - h) * out - LF;
        whole = room < 0 || room_out < 0 ? 0 : std::min({whole, room / step + 1, room_out / out + 1});
      }
      with_taps(m, [&](auto M) { group_lines<S, M>(rows, m, h, whole); });
      for (int64_t line = whole; line < next - h; ++line) {
        if (Op::mean) scale_for(h + line);
        V v[S];
        for (int i = 0; i < S; ++i) v[i] = fold_some(rows, m, line * step + i * LF, std::clamp<int64_t>(S * out - i * LF, 0, LF));
        put(out_ + (h + line) * out, merge_groups<S>(v, op_), scale_, out);
      }
    }
  }
  template <int S, int M> void group_lines(const T* const* rows, int m, int64_t h, int64_t lines) {
    const int64_t out = g_.w.out, step = g_.h.stride * g_.w.n;
    Pointers<M, const T*> row(rows, m);
    T* y = out_ + h * out;
    vi nan{};
    const auto put_at = [&](int64_t o) __attribute__((always_inline)) {
      V v[S];
      for (int i = 0; i < S; ++i) v[i] = fold_at<M>(row, S * o + i * LF, nan);
      put(y + o, merge_groups<S>(v, op_), scale_ + o, LF, out - o);
    };
    for (int64_t line = 0; line < lines; ++line, y += out, row.advance(step)) {
      if (Op::mean) scale_for(h + line);
      int64_t o = 0;
      for (; o + LF <= out; o += LF) put_at(o);
      if (o < out) put_at(std::max<int64_t>(out - LF, 0));
    }
    nan_ |= nan;
  }
  // the end of the rows of results, from h on, whose windows have the same rows, further down
  int64_t rows_alike(int64_t h, int64_t high) const {
    if (g_.h.end(h) - g_.h.first(h) < g_.h.kernel) return h + 1;
    return std::min(high, (g_.h.n + g_.h.left - g_.h.kernel) / g_.h.stride + 1);
  }

  // ---- where there is NaN, or a sum that float does not hold: element by element ---------------------------------------------

  void define(int64_t low, int64_t high) {
    const T* row[64];
    std::vector<const T*> many(std::max<int64_t>(g_.h.kernel, 64));
    for (int64_t h = low; h < high; ++h) {
      const T** rows = tall_ ? many.data() : row;
      const int m = rows_of(h, 0, rows);
      for (int64_t o = 0; o < g_.w.out; ++o) {
        float most = lowest<float>();
        double sum = 0;
        for (int r = 0; r < m; ++r)
          for (int64_t c = g_.w.first(o); c < g_.w.end(o); ++c) {
            const float v = value(rows[r] + c);
            most = v > most || v != v ? v : most, sum += v;
          }
        store_part(out_ + h * g_.w.out + o, splat<vf>(Op::mean ? (float)(sum * by_[0][d_] * by_[1][h] * by_[2][o]) : most), 1);
      }
    }
  }
};

template <class T, class Op> bool values(const Plan& plan, const Grid& g, const Call& call) {
  const Units units(g.planes * g.d.out, g.h.out, g.w.n * g.h.stride * g.d.kernel);
  std::atomic<bool> declined{false};
  const bool done = in_parallel(units.number, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) {
    if (!declined && !Values<T, Op>(plan, g, call, units).run(begin, end)) declined = true;
  });
  return done && !declined;
}

}  // namespace

bool rows_values(const Plan& plan, const Grid& grid, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    if (plan.op == MAX) return values<T, Largest>(plan, grid, call);
    const bool few = grid.d.kernel * grid.h.kernel * grid.w.kernel <= FLOAT_TAPS;
    return few ? values<T, FewTotal>(plan, grid, call) : values<T, Total>(plan, grid, call);
  });
}

bool rows_powers(const Plan& plan, const Grid& grid, const Call& call) {
  const int p = whole_power(call);
  if (p == 0) return false;
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return p == 2 ? values<T, Powers<2>>(plan, grid, call) : values<T, Powers<3>>(plan, grid, call);
  });
}

}  // namespace everypool
