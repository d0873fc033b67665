// Sliding windows that overlap: prefixes and suffixes of blocks as long as the window (van Herk; Gil and Werman), so that the cost
// does not grow with it. Down the rows first, a vector along the row; then along LF rows at a time, one in each lane.
#include "rows_weights.h"

namespace everypool {
namespace {

struct LargestOf {
  using V = vf;
  static constexpr bool mean = false, weights = false, careful = false;  // careful: of NaN
  EP_INLINE V map(vf x) const { return x; }
  static EP_INLINE V merge(V a, V b) { return largest(a, b); }
  static EP_INLINE void turn(V* v) { transpose(v); }
  EP_INLINE vf finish(V v, Wide, double) const { return v; }
};
struct LargestOrNan : LargestOf {  // the instruction drops NaN
  static constexpr bool careful = true;
  static EP_INLINE V merge(V a, V b) { return (vi)(a != a) ? a : largest(a, b); }
};

struct SumOf {
  using V = Wide;
  static constexpr bool mean = true, weights = false, careful = true;
  EP_INLINE V map(vf x) const { return widened(x); }
  static EP_INLINE V merge(V a, V b) { return a + b; }
  static EP_INLINE void turn(V* v) {
    vd part[4][LD];
    for (int i = 0; i < LD; ++i) part[0][i] = v[i].lo, part[1][i] = v[i].hi, part[2][i] = v[LD + i].lo, part[3][i] = v[LD + i].hi;
    for (auto& p : part) transpose(p);
    for (int i = 0; i < LD; ++i) v[i] = {part[0][i], part[2][i]}, v[LD + i] = {part[1][i], part[3][i]};
  }
  EP_INLINE vf finish(V v, Wide row, double column) const { return narrowed(v * (row * Lane<float>::all(column))); }
};

// Weights and weighted elements, around one value per plane.
struct WeightsOf {
  struct V {
    vf weight, above;
  };
  static constexpr bool mean = false, weights = true, careful = true;
  vf beta, top, middle;
  EP_INLINE V map(vf x) const {
    const vf e = exponential(beta * (x - top));
    return {e, e * (x - middle)};
  }
  static EP_INLINE V merge(V a, V b) { return {a.weight + b.weight, a.above + b.above}; }
  static EP_INLINE void turn(V* v) {
    vf weights[LF], above[LF];
    for (int i = 0; i < LF; ++i) weights[i] = v[i].weight, above[i] = v[i].above;
    transpose(weights), transpose(above);
    for (int i = 0; i < LF; ++i) v[i] = {weights[i], above[i]};
  }
  EP_INLINE vf finish(V v, Wide, double) const { return middle + v.above / v.weight; }
};

template <class T, class Fold> class Blocks {
  using V = typename Fold::V;

 public:
  Fold fold;

  Blocks(const Plan& plan, const Grid& grid, const Call& call)
      : g_(grid), x_(static_cast<const T*>(call.x)), x_end_(x_ + g_.planes * g_.in), y_(static_cast<T*>(call.y[0])) {
    const Line &h = g_.h, &w = g_.w;
    columns_ = std::min(w.out, std::max(BLOCKS_ROW, 4 * w.kernel) / w.stride);
    const int64_t cells = (std::min((columns_ - 1) * w.stride + w.kernel, w.n) + LF - 1) / LF, out = round_up(columns_, LF);
    pitch_ = cells | 1;
    if (Fold::weights && call.save) kept_ = kept_of(call);
    const int64_t states = ((h.kernel + 1 + 2 * LF) * pitch_) * (int64_t)sizeof(V), results = out * (int64_t)sizeof(vf);
    block_ = static_cast<V*>(memory_.take(states + (kept_ ? 3 : 1) * results));
    prefix_ = block_ + h.kernel * pitch_, rows_ = prefix_ + pitch_, line_ = rows_ + LF * pitch_;
    results_ = reinterpret_cast<vf*>(line_ + LF * pitch_), weights_ = results_ + out, above_ = weights_ + out;
    std::fill_n(rows_, LF * pitch_, V{});
    if (Fold::mean) row_by_ = factors(plan, 1), column_by_ = factors(plan, 2);
  }

  // windows of rows low to high of a plane; false: there is NaN
  bool band(int64_t plane, int64_t low, int64_t high) {
    nan_ = vi{};
    for (int64_t left = 0; left < g_.w.out; left += columns_) {
      left_ = left, right_ = std::min(left + columns_, g_.w.out);
      from_ = g_.w.first(left_), size_ = g_.w.end(right_ - 1) - from_, cells_ = (size_ + LF - 1) / LF;
      plane_ = x_ + plane * g_.in + from_, out_ = plane * g_.out + left_;
      down(low, high);
    }
    return Fold::careful || !any(nan_);
  }

 private:
  static constexpr int64_t BLOCKS_ROW = 1024;  // columns at a time
  const Grid& g_;
  const T *x_, *x_end_;
  T* y_;
  int64_t columns_, pitch_;
  Scratch memory_;
  V *block_, *prefix_, *rows_, *line_;  // a block of rows, what is folded of the next one, rows of windows, the same in lanes
  vf *results_, *weights_, *above_;  // of LF rows of windows
  float* kept_ = nullptr;            // for the gradient
  std::vector<double> row_by_, column_by_;
  // the columns at hand
  int64_t left_ = 0, right_ = 0, from_ = 0, size_ = 0, cells_ = 0;
  const T* plane_ = nullptr;
  int64_t out_ = 0;
  vi nan_{};

  // f(cell, its elements) for a row of the plane; vectors may reach into the next row, but not beyond the last plane
  template <class F> EP_INLINE void cells_of(int64_t row, const F& f) {
    const T* x = plane_ + row * g_.w.n;
    const int64_t whole = std::min(cells_, (x_end_ - x) / LF);
    vi nan{};
    const auto see = [&](int64_t c, vf v) __attribute__((always_inline)) {
      if (!Fold::careful) nan |= unordered(v, v);
      f(c, fold.map(v));
    };
    int64_t c = 0;
    for (; c < whole; ++c) see(c, load_as(x + c * LF));
    if (c < cells_) see(c, load_part(x + c * LF, x_end_ - x - c * LF));
    nan_ |= nan;
  }

  void down(int64_t low, int64_t high) {
    const Line& h = g_.h;
    int64_t filled = 0, base = h.begin(low);
    for (int64_t r = std::max<int64_t>(base, 0); r < std::min(base + h.kernel, h.n); ++r) take(r, block_ + (r - base) * pitch_);
    for (int64_t o = low; o < high; base += h.kernel) {
      for (int64_t r = std::min(base + h.kernel, h.n) - 2; r >= std::max<int64_t>(base, 0); --r) {
        V* row = block_ + (r - base) * pitch_;
        const V* below = row + pitch_;
        for (int64_t c = 0; c < cells_; ++c) row[c] = Fold::merge(row[c], below[c]);
      }
      const int64_t next = base + h.kernel;
      int64_t done = next;  // rows of the next block that are folded; they take the places of those that no window begins with
      for (; o < high && h.begin(o) < next; ++o) {
        for (; done < h.end(o); ++done) fold_in(done, block_ + (done - next) * pitch_, done == next);
        put(block_ + (h.first(o) - base) * pitch_, done > next, rows_ + filled * pitch_);
        if (++filled == LF || o + 1 == high) along(o + 1 - filled, filled), filled = 0;
      }
      if (o < high)
        for (; done < std::min(next + h.kernel, h.n); ++done) take(done, block_ + (done - next) * pitch_);
    }
  }
  void take(int64_t row, V* to) {
    cells_of(row, [&](int64_t c, V v) __attribute__((always_inline)) { to[c] = v; });
  }
  void fold_in(int64_t row, V* to, bool first) {
    V* const prefix = prefix_;
    if (first)
      cells_of(row, [&](int64_t c, V v) __attribute__((always_inline)) { prefix[c] = to[c] = v; });
    else
      cells_of(row, [&](int64_t c, V v) __attribute__((always_inline)) { to[c] = v, prefix[c] = Fold::merge(prefix[c], v); });
  }
  void put(const V* suffix, bool both, V* to) const {
    const V* const prefix = prefix_;
    if (both)
      for (int64_t c = 0; c < cells_; ++c) to[c] = Fold::merge(suffix[c], prefix[c]);
    else
      std::copy_n(suffix, cells_, to);
  }

  // `number` rows of windows from row o on
  void along(int64_t o, int64_t number) {
    for (int64_t c = 0; c < cells_; ++c) {
      V v[LF];
      for (int i = 0; i < LF; ++i) v[i] = rows_[i * pitch_ + c];
      Fold::turn(v);
      for (int i = 0; i < LF; ++i) line_[c * LF + i] = v[i];
    }
    Wide by{};
    if (Fold::mean) {
      double of_row[LF] = {};
      for (int64_t i = 0; i < number; ++i) of_row[i] = row_by_[(o + i) % row_by_.size()];
      by = {loadu<vd>(of_row), loadu<vd>(of_row + LD)};
    }
    fold_line(by);
    write(results_, number, y_ + out_ + o * g_.w.out);
    if (!kept_) return;
    write(weights_, number, kept_ + out_ + o * g_.w.out);
    write(above_, number, kept_ + g_.planes * g_.out + out_ + o * g_.w.out);
  }
  template <class E> void write(vf* lanes, int64_t number, E* to) const {
    const int64_t count = right_ - left_;
    for (int64_t c = 0; c < count; c += LF) transpose(lanes + c);
    for (int64_t i = 0; i < number; ++i, to += g_.w.out) {  // row after row: memory is written in its order
      int64_t c = 0;
      for (; c + LF <= count; c += LF) store_as(to + c, lanes[c + i]);
      if (c < count) store_part(to + c, lanes[c + i], count - c);
    }
  }
  void fold_line(Wide by) {
    const Line w = g_.w;  // what is stored could be a member, for all that a compiler knows
    V* const line = line_ - from_;
    vf *const results = results_ - left_, *const weights = kept_ ? weights_ - left_ : nullptr, *const above = above_ - left_;
    const double* const scale = column_by_.data();
    const int64_t first = from_, last = from_ + size_, right = right_;
    const auto finish = [&](int64_t o, V v) __attribute__((always_inline)) {
      results[o] = fold.finish(v, by, Fold::mean ? scale[o] : 1);
      if constexpr (Fold::weights)
        if (weights) weights[o] = v.weight, above[o] = v.above / v.weight;
    };
    int64_t o = left_;
    for (int64_t base = w.begin(o); o < right; base += w.kernel) {
      const int64_t next = base + w.kernel, stop = std::min(right, floor_of(next - 1 + w.left, w.stride) + 1);
      int64_t c = std::min(next, last) - 1;
      V suffix = line[c];
      for (--c; c >= std::max(base, first); --c) line[c] = suffix = Fold::merge(suffix, line[c]);
      if (o < stop && (w.begin(o) == base || next >= last)) {
        finish(o, line[w.first(o)]), ++o;
        if (next >= last)
          for (; o < stop; ++o) finish(o, line[w.first(o)]);
      }
      if (o >= stop) continue;
      int64_t done = next + 1;
      V prefix = line[next];
      for (int64_t from = w.begin(o); o < stop; ++o, from += w.stride) {
        for (const int64_t end = std::min(from + w.kernel, last); done < end; ++done) prefix = Fold::merge(prefix, line[done]);
        finish(o, Fold::merge(line[std::max(from, first)], prefix));
      }
    }
  }
};

// Rows that are windows of their own are rows of one plane.
Grid in_lines(Grid g) {
  if (g.h.kernel > 1 || g.h.stride > 1 || g.h.left > 0 || g.h.out != g.h.n) return g;
  g.h.n = g.h.out = g.planes * g.h.n, g.in *= g.planes, g.out *= g.planes, g.planes = 1;
  return g;
}

// Bands of rows: their windows share few rows with those of the next one.
Units bands(const Grid& g) { return Units(g.planes, g.h.out, g.w.n * g.h.stride / std::max<int64_t>(g.h.kernel / 16, 1)); }

// f(rows, plane, first row, last row) for all bands; false where it says so
template <class Rows, class F> bool in_bands(const Plan& plan, const Grid& g, const Call& call, const F& f) {
  const Units units = bands(g);
  std::atomic<bool> declined{false};
  const bool done = in_parallel(units.number, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) {
    Rows rows(plan, g, call);
    for (int64_t unit = begin; unit < end && !declined; ++unit)
      if (!f(rows, units.plane(unit), units.low(unit), units.high(unit))) declined = true;
  });
  return done && !declined;
}

// false: there are values that need windows with a reference of their own
template <class T> bool soft(const Plan& plan, const Grid& g, const Call& call) {
  if (call.parameters != 1) return false;
  const float beta = (float)*call.parameter;
  struct Reference : Around {
    bool found = false;
  };
  std::vector<Reference> around(g.planes);
  const auto look = [&](int64_t plane) { around[plane].found = around[plane].find(static_cast<const T*>(call.x) + plane * g.in, g.in, beta); };
  const bool apart = bands(g).parts > 1;  // several bands want to know
  if (apart && !in_parallel(g.planes, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) {
        for (; begin < end; ++begin) look(begin);
      }))
    return false;
  return in_bands<Blocks<T, WeightsOf>>(plan, g, call, [&](auto& rows, int64_t plane, int64_t low, int64_t high) {
    if (!apart) look(plane);
    const Reference& at = around[plane];
    rows.fold = {splat<vf>(beta), splat<vf>(at.top), splat<vf>(at.middle)};
    return at.found && rows.band(plane, low, high);
  });
}

}  // namespace

// From which kernel on this is faster than to look at every element of a window.
bool by_blocks(int op, const Grid& g) {
  const auto pays = [op](const Line& l) {
    const int64_t least = op == SOFT ? 2 : op == MEAN || l.stride > 1 ? 5 : 7;
    return l.kernel > l.stride && l.kernel >= least;
  };
  const bool lines = op == SOFT && g.h.n < LF && g.h.kernel == 1;  // too few rows for all lanes
  return g.d.kernel == 1 && g.d.n == 1 && !lines && (pays(g.h) || pays(g.w));
}

bool rows_blocks(const Plan& plan, const Grid& grid, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    if (plan.op == SOFT) return soft<T>(plan, grid, call);
    const Grid g = in_lines(grid);
    if (plan.op == MEAN)
      return in_bands<Blocks<T, SumOf>>(plan, g, call, [](auto& rows, auto... band) { return rows.band(band...); });
    return in_bands<Blocks<T, LargestOf>>(plan, g, call, [&](auto& rows, auto... band) {
      return rows.band(band...) || Blocks<T, LargestOrNan>(plan, g, call).band(band...);
    });
  });
}

}  // namespace everypool
