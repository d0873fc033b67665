// Maxima of sliding windows that keep, in one byte each, the number of the element that has won: along every row first, then
// over the rows, so that the first in row-major order wins.
#include "rows.h"

namespace everypool {
namespace {

constexpr int64_t WINNERS_TILE = 24 << 10;  // bytes of rows and of what won in them

// Windows side by side along a row, as the rows of a tile hold them.
struct Piece {
  int64_t first, count;    // windows
  int64_t start, n;        // columns that they hold
  int64_t left;            // columns by which the first window begins before them
  int64_t before, pitch;   // positions of a sheet: in front of a row, from row to row

  Piece(const Line& w, int64_t from, int64_t to) : first(from), count(to - from) {
    start = w.first(from), n = w.end(to - 1) - start, left = start - w.begin(from);
    before = (left + w.stride - 1) / w.stride;
    const int64_t positions = (n + w.stride - 1) / w.stride;
    const int64_t reach = count + floor_of(w.kernel - 1 - left, w.stride);  // positions up to the last window's end
    pitch = positions + std::max({before, reach - positions, int64_t(0)});
  }
};

template <int FROM, int S, int... T>
EP_INLINE void merge_phases(const vf* v, int32_t number, vf& best, vi& won, std::integer_sequence<int, T...>) {
  const auto merge = [&](vf x, int32_t t) __attribute__((always_inline)) {
    won = x > best ? splat<vi>(t) : won;
    best = largest(x, best);
  };
  (merge(phase<FROM + T, S>(v), number + FROM + T), ...);
}

template <class T> class Winners {
 public:
  Winners(const Grid& grid, const Call& call, const Units& units)
      : g_(grid), units_(units), x_(static_cast<const T*>(call.x)), y_(static_cast<T*>(call.y[0])), won_(static_cast<uint8_t*>(call.aux[0])) {
    x_end_ = x_ + g_.planes * g_.in;
    const Line &d = g_.d, &h = g_.h, &w = g_.w;
    slice_ = h.out * w.out;
    groups_ = w.stride == w.kernel && w.stride >= 2 && w.stride <= 4 && w.whole() && w.out >= LF && d.kernel * h.kernel <= MOST_ROWS;
    if (groups_) return;
    columns_ = w.out * w.stride > 4 * ROWS_WIDE ? std::max<int64_t>(ROWS_WIDE / w.stride, 1) : w.out;
    const int64_t pitch = columns_ + 2 * (w.kernel / w.stride + 2), row = pitch * (w.stride + 2) * 4;
    int64_t rows = std::max<int64_t>(WINNERS_TILE / row / d.kernel, 1);
    lines_ = std::min(std::max<int64_t>((rows - h.kernel) / h.stride + 1, 1), h.out);
    slices_ = d.n == 1 && d.out == 1 && lines_ == h.out && columns_ == w.out ? std::max<int64_t>(rows / h.n, 1) : 1;
    rows = std::max(((lines_ - 1) * h.stride + h.kernel) * d.kernel, slices_ > 1 ? slices_ * h.n : 0);
    lead_ = round_up(w.left, LF);
    sheet_ = round_up(lead_ + rows * pitch + w.kernel + 4 * LF, LF);
  }

  void run(int64_t begin, int64_t end) {
    if (!groups_) {
      tile_ = static_cast<float*>(memory_.take(sheet_ * (g_.w.stride + 2) * 4));
      best_ = tile_ + sheet_ * g_.w.stride, column_ = reinterpret_cast<int32_t*>(best_ + sheet_);
    }
    for (int64_t unit = begin, next; unit < end; unit = next) {
      const int64_t slice = units_.plane(unit);
      next = units_.parts == 1 ? std::min(unit + slices_, end) : unit + 1;
      end_ = units_.parts == 1 ? end * slice_ : slice * slice_ + units_.high(unit) * g_.w.out;
      band(slice, next - unit, units_.low(unit), units_.high(unit));
    }
  }

 private:
  static constexpr int MOST_ROWS = 16;
  const Grid& g_;
  const Units& units_;
  const T* x_;
  T* y_;
  uint8_t* won_;
  const T* x_end_;
  bool groups_;
  int64_t slice_;                       // windows of a plane, or of a slice of it
  int64_t columns_ = 0, lines_ = 0, slices_ = 1;  // of a tile
  int64_t lead_ = 0, sheet_ = 0;
  Scratch memory_;
  float *tile_ = nullptr, *best_ = nullptr;
  int32_t* column_ = nullptr;
  int64_t end_ = 0;  // windows before this one are this thread's

  const T* slice_of(int64_t slice) const { return x_ + slice / g_.d.out * g_.in; }

  void band(int64_t slice, int64_t slices, int64_t low, int64_t high) {
    if (groups_) {
      with_constant<2, 3>(g_.w.stride, [&](auto S) { group_rows<S == 0 ? 4 : S>(slice, low, high); });
      return;
    }
    for (int64_t h = low; h < high; h += lines_)
      for (int64_t c = 0; c < g_.w.out; c += columns_)
        tile(slice, slices, h, std::min(h + lines_, high), Piece(g_.w, c, std::min(c + columns_, g_.w.out)));
  }

  // ---- through a tile -----------------------------------------------------------------------------------------------------

  // windows of rows low to high of `slices` slices
  void tile(int64_t slice, int64_t slices, int64_t low, int64_t high, const Piece& p) {
    const int64_t d = slice % g_.d.out, first = g_.d.first(d), deep = g_.d.end(d) - first;
    const int64_t top = slices > 1 ? 0 : g_.h.first(low), rows = slices > 1 ? g_.h.n : g_.h.end(high - 1) - top;
    Sheets s;
    s.to = tile_ + lead_, s.pitch = p.pitch, s.sheet = sheet_, s.before = p.before;
    vi nan{};
    with_constant<1, 2, 3>(g_.w.stride, [&](auto S) {
      const T* from = slice_of(slice) + (first * g_.h.n + top) * g_.w.n + p.start;
      for (int64_t z = 0; z < deep; ++z, from += g_.h.n * g_.w.n, s.to += rows * p.pitch, s.before = 0) nan |= spread<S>(from, slices * rows, p.n, s);
    });
    if (any(nan)) {
      for (int64_t i = 0; i < slices; ++i)
        for (int64_t h = low; h < high; ++h) define(slice + i, h, p);
      return;
    }
    s.to = tile_ + lead_;
    along(s, p, slices * deep * rows);
    for (int64_t i = 0; i < slices; ++i)
      with_constant<1, 2, 3, 5>(g_.h.kernel, [&](auto K) {
        for (int64_t h = low; h < high; ++h) down<K>(slice + i, h, (i * rows + g_.h.first(h) - top) * p.pitch, rows * p.pitch, p);
      });
  }
  template <int S> vi spread(const T* from, int64_t rows, int64_t n, const Sheets& s) const {
    if constexpr (S > 0) return spread_rows<S>(from, rows, g_.w.n, n, x_end_, lowest<float>(), s);
    bool nan = false;
    for (int64_t p = 0; p < g_.w.stride; ++p) std::fill(s.to + p * s.sheet - s.before, s.to + p * s.sheet + rows * s.pitch, lowest<float>());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < n; ++c) {
        const float v = value(from + r * g_.w.n + c);
        s.to[c % g_.w.stride * s.sheet + r * s.pitch + c / g_.w.stride] = v, nan |= v != v;
      }
    return splat<vi>(nan ? -1 : 0);
  }

  // the largest element and its column of every row in every window
  void along(const Sheets& s, const Piece& p, int64_t rows) {
    const float* tap[ROWS_KERNEL];
    for (int64_t t = 0; t < g_.w.kernel; ++t) tap[t] = s.tap(t, p.left, g_.w.stride);
    const int64_t count = (rows - 1) * p.pitch + p.count;
    with_constant<1, 2, 3, 5>(g_.w.kernel, [&](auto K) {
      const Pointers<K, const float*> at(tap, (int)g_.w.kernel);
      for (int64_t j = 0; j < count; j += LF) {
        vf best = loadu<vf>(at[0] + j);
        vi column{};
#pragma GCC unroll 5
        for (int t = 1; t < at.size; ++t) {
          const vf x = loadu<vf>(at[t] + j);
          column = x > best ? splat<vi>(t) : column;
          best = largest(x, best);
        }
        storeu(best_ + j, best), storeu(column_ + j, column);
      }
    });
    // where all is -inf, what surrounds the row must not have won
    for (int64_t o = 0; o < p.before && o < p.count; ++o)
      for (int64_t r = 0; r < rows; ++r) {
        int32_t& column = column_[r * p.pitch + o];
        column = std::max(column, (int32_t)(p.left - o * g_.w.stride));
      }
  }

  // one row of windows, from the rows of the tile from `at` on; K is the kernel's height where it is a constant
  template <int K> EP_INLINE void down(int64_t slice, int64_t h, int64_t at, int64_t deep, const Piece& p) {
    const int64_t m = g_.h.end(h) - g_.h.first(h);
    const int64_t d = slice % g_.d.out, layers = g_.d.end(d) - g_.d.first(d);
    const int32_t wide = (int32_t)g_.w.kernel, high = wide * (int32_t)g_.h.kernel;
    const int32_t number = (int32_t)(g_.d.first(d) - g_.d.begin(d)) * high + (int32_t)(g_.h.first(h) - g_.h.begin(h)) * wide;
    const int64_t to = slice * slice_ + h * g_.w.out + p.first;
    const auto rows = [&](auto M) __attribute__((always_inline)) {
      const int64_t most = M > 0 ? M : m;
      for (int64_t o = 0; o < p.count; o += LF) {
        const float* value = best_ + at + o;
        const int32_t* column = column_ + at + o;
        vf best = loadu<vf>(value);
        vi won = loadu<vi>(column) + number;
        for (int64_t z = 0; z < layers; ++z, value += deep, column += deep)
#pragma GCC unroll 5
          for (int64_t r = z == 0; r < most; ++r) {
            const vf x = loadu<vf>(value + r * p.pitch);
            won = x > best ? loadu<vi>(column + r * p.pitch) + (number + (int32_t)z * high + (int32_t)r * wide) : won;
            best = largest(x, best);
          }
        store(to + o, p.count - o, best, won);
      }
    };
    if (m == K)
      rows(std::integral_constant<int, K>{});
    else
      rows(std::integral_constant<int, 0>{});
  }
  // what follows in memory is written later, up to where other threads write
  EP_INLINE void store(int64_t at, int64_t count, vf best, vi won) {
    if (count >= LF || (columns_ == g_.w.out && at + LF <= end_)) {
      store_as(y_ + at, best), to_bytes(won_ + at, won);
    } else {
      store_part(y_ + at, best, count), to_bytes(won_ + at, won, count);
    }
  }

  // ---- windows of S columns side by side, rows unpadded: no tile ----------------------------------------------------------

  template <int S> void group_rows(int64_t slice, int64_t low, int64_t high) {
    const int64_t d = slice % g_.d.out, out = g_.w.out;
    const T* rows[MOST_ROWS];
    int32_t numbers[MOST_ROWS];
    for (int64_t h = low; h < high; ++h) {
      int m = 0;
      for (int64_t z = g_.d.first(d); z < g_.d.end(d); ++z)
        for (int64_t r = g_.h.first(h); r < g_.h.end(h); ++r, ++m) {
          rows[m] = slice_of(slice) + (z * g_.h.n + r) * g_.w.n;
          numbers[m] = (int32_t)(((z - g_.d.begin(d)) * g_.h.kernel + r - g_.h.begin(h)) * S);
        }
      const int64_t to = slice * slice_ + h * out;
      vi nan{};
      with_constant<1, 2, 3, 4>(m, [&](auto M) {
        const Pointers<M, const T*> row(rows, m);
        const Pointers<M, int32_t> number(numbers, m);
        const auto step = [&](int64_t o) __attribute__((always_inline)) {
          vf v[S], best;
          vi won;
#pragma GCC unroll 4
          for (int r = 0; r < row.size; ++r) {
            for (int i = 0; i < S; ++i) v[i] = load_as(row[r] + S * o + i * LF);
            for (int i = 0; i < S; i += 2) nan |= unordered(v[i], v[std::min(i + 1, S - 1)]);
            if (r == 0) {
              best = phase<0, S>(v), won = splat<vi>(number[0]);
              merge_phases<1, S>(v, number[0], best, won, std::make_integer_sequence<int, S - 1>{});
            } else {
              merge_phases<0, S>(v, number[r], best, won, std::make_integer_sequence<int, S>{});
            }
          }
          store_as(y_ + to + o, best), to_bytes(won_ + to + o, won);
        };
        int64_t o = 0;
        for (; o + LF <= out; o += LF) step(o);
        if (o < out) step(out - LF);
      });
      if (any(nan)) define(slice, h, Piece(g_.w, 0, out));
    }
  }

  // ---- where there is NaN: element by element -----------------------------------------------------------------------------

  void define(int64_t slice, int64_t h, const Piece& p) {
    const Line& w = g_.w;
    const int64_t d = slice % g_.d.out;
    for (int64_t o = p.first; o < p.first + p.count; ++o) {
      float best = lowest<float>();
      int64_t won = -1;
      for (int64_t z = g_.d.first(d); z < g_.d.end(d); ++z)
        for (int64_t r = g_.h.first(h); r < g_.h.end(h); ++r)
          for (int64_t c = w.first(o); c < w.end(o); ++c) {
            const float v = value(slice_of(slice) + (z * g_.h.n + r) * w.n + c);
            if (!(v > best || v != v || won < 0)) continue;
            best = v, won = ((z - g_.d.begin(d)) * g_.h.kernel + r - g_.h.begin(h)) * w.kernel + c - w.begin(o);
          }
      store_part(y_ + slice * slice_ + h * w.out + o, splat<vf>(best), 1);
      won_[slice * slice_ + h * w.out + o] = (uint8_t)won;
    }
  }
};

template <class T> void take_planes(const Grid& g, const Call& call, int64_t begin, int64_t end) {
  std::vector<int64_t> place(g.d.kernel * g.h.kernel * g.w.kernel);
  for (int64_t t = 0; t < (int64_t)place.size(); ++t)
    place[t] = (t / g.w.kernel / g.h.kernel * g.h.n + t / g.w.kernel % g.h.kernel) * g.w.n + t % g.w.kernel;
  const T* x = static_cast<const T*>(call.x);
  T* y = static_cast<T*>(call.y[0]);
  const uint8_t* won = static_cast<const uint8_t*>(call.aux[0]);
  int64_t at = begin * g.out;
  for (int64_t plane = begin; plane < end; ++plane)
    for (int64_t d = 0; d < g.d.out; ++d)
      for (int64_t h = 0; h < g.h.out; ++h) {
        const int64_t row = plane * g.in + (g.d.begin(d) * g.h.n + g.h.begin(h)) * g.w.n - g.w.left;
        for (int64_t w = 0; w < g.w.out; ++w, ++at) y[at] = x[row + w * g.w.stride + place[won[at]]];
      }
}

}  // namespace

bool rows_winners(const Plan& plan, const Grid& g, const Call& call) {
  const Units units(g.planes * g.d.out, g.h.out, g.w.n * g.h.stride * g.d.kernel);
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return in_parallel(units.number, g.planes * g.in >= SERIAL,
                       [&](int64_t begin, int64_t end) { Winners<T>(g, call, units).run(begin, end); });
  });
}

bool rows_take(const Plan& plan, const Grid& g, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    return in_parallel(g.planes, g.planes * g.out >= SERIAL, [&](int64_t begin, int64_t end) { take_planes<T>(g, call, begin, end); });
  });
}

}  // namespace everypool
