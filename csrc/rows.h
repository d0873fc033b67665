// Sliding windows over planes, a vector along the row: what the forward and the backward loops share.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "folds.h"
#include "work.h"

namespace everypool {

// One axis: window o holds the elements from o * stride - left on, `kernel` of them, that lie in [0, n).
struct Line {
  int64_t n = 1, out = 1, kernel = 1, stride = 1, left = 0;

  int64_t begin(int64_t o) const { return o * stride - left; }
  int64_t first(int64_t o) const { return std::max<int64_t>(begin(o), 0); }
  int64_t end(int64_t o) const { return std::min(begin(o) + kernel, n); }
  bool whole() const { return left == 0 && begin(out - 1) + kernel <= n; }  // no window reaches beyond the axis
  // windows that hold element i
  int64_t low(int64_t i) const { return i + left < kernel ? 0 : (i + left - kernel) / stride + 1; }
  int64_t high(int64_t i) const { return std::min((i + left) / stride + 1, out); }
};

struct Grid {
  int64_t planes = 0, in = 1, out = 1;  // elements of a plane
  Line d, h, w;
};

// false: not what these loops do
bool grid_of(const Plan& plan, Grid& grid);

bool by_blocks(int op, const Grid& grid);  // whether rows_blocks is the best forward of a reducer

bool rows_values(const Plan& plan, const Grid& grid, const Call& call);    // forward
bool rows_blocks(const Plan& plan, const Grid& grid, const Call& call);    // forward of windows that overlap; false: not these values
bool rows_winners(const Plan& plan, const Grid& grid, const Call& call);   // forward of a maximum that keeps what has won
bool rows_take(const Plan& plan, const Grid& grid, const Call& call);      // the elements that have won
bool rows_winners_gradient(const Plan& plan, const Grid& grid, const Call& call);

// What a mean is multiplied by is the product of its factors along the axes.
std::vector<double> factors(const Plan& plan, int axis);

constexpr int64_t ROWS_TILE = 16 << 10;        // bytes of rows between two steps: they stay in the first cache
constexpr int64_t ROWS_WIDE = 1024;            // elements of a row at which it is cut into several
constexpr int64_t ROWS_KERNEL = 512;           // largest window along an axis
constexpr int64_t ROWS_UNITS = 64;             // fewer planes than that are cut into bands of rows

inline int64_t floor_of(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }
inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Planes, or where there are few of them, bands of `lines` rows each: what one thread does at a time.
struct Units {
  int64_t planes, lines, parts, number;
  Units(int64_t planes_, int64_t lines_, int64_t line_size) : planes(planes_), lines(lines_) {
    const int64_t most = std::max<int64_t>(lines * line_size / SERIAL, 1);
    parts = planes >= ROWS_UNITS ? 1 : std::min({(ROWS_UNITS + planes - 1) / std::max<int64_t>(planes, 1), most, lines});
    number = planes * parts;
  }
  int64_t plane(int64_t unit) const { return unit / parts; }
  int64_t low(int64_t unit) const { return unit % parts * lines / parts; }
  int64_t high(int64_t unit) const { return (unit % parts + 1) * lines / parts; }
};

// Rows, or shifts of a row, that are folded into one: M of them in registers (what is stored could be a pointer, for all that
// a compiler knows), or any number in memory.
template <int M, class P> struct Pointers {
  P p[M];
  static constexpr int size = M;
  EP_INLINE Pointers(const P* from, int, int64_t at = 0) {
    for (int i = 0; i < M; ++i) p[i] = from[i] + at;
  }
  EP_INLINE P operator[](int i) const { return p[i]; }
  EP_INLINE void advance(int64_t by) {
    for (int i = 0; i < M; ++i) p[i] += by;
  }
};
template <class P> struct Pointers<0, P> {
  const P* p;
  int size;
  int64_t at;
  EP_INLINE Pointers(const P* from, int m, int64_t at_ = 0) : p(from), size(m), at(at_) {}
  EP_INLINE P operator[](int i) const { return p[i] + at; }
  EP_INLINE void advance(int64_t by) { at += by; }
};

// ---- lanes ----------------------------------------------------------------------------------------------------------------

// Lane P, P + S, P + 2 S, ... of S vectors in a row.
template <int P, int S, class V, int... I> EP_INLINE V phase_of(const V* v, std::integer_sequence<int, I...> lanes) {
  constexpr int L = sizeof...(I);
  if constexpr (S == 1) {
    return v[0];
  } else if constexpr (S == 2) {
    return __builtin_shufflevector(v[0], v[1], (2 * I + P)...);
  } else if constexpr (S == 4) {
    const V half[2] = {phase_of<P % 2, 2>(v, lanes), phase_of<P % 2, 2>(v + 2, lanes)};
    return phase_of<P / 2, 2>(half, lanes);
  } else {
    static_assert(S == 3, "strides of their own");
    // 3 is prime to L: every lane of the three vectors is wanted from one of them only
    constexpr auto source = [](int lane) { return (3 * ((lane + 3 * L - P) * (L % 3 == 1 ? (2 * L + 1) / 3 : (L + 1) / 3) % L) + P) / L; };
    const V two = __builtin_shufflevector(v[0], v[1], (source(I) == 1 ? L + I : I)...);
    const V three = __builtin_shufflevector(two, v[2], (source(I) == 2 ? L + I : I)...);
    return __builtin_shufflevector(three, three, ((3 * I + P) % L)...);
  }
}
template <int P, int S, class V> EP_INLINE V phase(const V* v) {
  return phase_of<P, S>(v, std::make_integer_sequence<int, sizeof(V) / sizeof(V{}[0])>{});
}

// p[0], p[stride], p[2 * stride], ...; S is the stride where it is a constant
template <int S, class V, class E> EP_INLINE V strided(const E* p, int64_t stride) {
  constexpr int L = sizeof(V) / sizeof(E);
  if constexpr (S == 0) {
    V v;
    for (int i = 0; i < L; ++i) v[i] = p[i * stride];
    return v;
  } else {
    V v[S];
    for (int i = 0; i < S; ++i) v[i] = loadu<V>(p + i * L);
    return phase<0, S>(v);
  }
}

template <class V, int... I> EP_INLINE void interleave_of(V& a, V& b, std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  const V first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * L)...);
  b = __builtin_shufflevector(a, b, (L / 2 + I / 2 + I % 2 * L)...);
  a = first;
}
EP_INLINE void interleave(vf& a, vf& b) { interleave_of(a, b, std::make_integer_sequence<int, LF>{}); }

// fewer than LF bytes
EP_INLINE vi from_bytes(const uint8_t* p, int64_t number) {
  uint8_t part[LF] = {};
  std::memcpy(part, p, number);
  return from_bytes(part);
}
EP_INLINE void to_bytes(uint8_t* p, vi v, int64_t number) {
  uint8_t part[LF];
  to_bytes(part, v);
  std::memcpy(p, part, number);
}

// as many of the lanes as fit before `end`
template <class T> EP_INLINE void store_until(T* p, vf v, const T* end) {
  if (end - p >= LF)
    store_as(p, v);
  else if (p < end)
    store_part(p, v, end - p);
}
template <class T> EP_INLINE vf load_until(const T* p, const T* end) {
  return end - p >= LF ? load_as(p) : load_part(p, std::max<int64_t>(end - p, 0));
}
template <class T> float value(const T* p) { return load_part(p, 1)[0]; }

// Row of a tile: what lies before the first element and after the last one is filled, the elements begin at `lead`.
struct Span {
  int64_t lead = 0;   // aligned
  int64_t first = 0;  // where the first window begins
  int64_t from = 0, to = 0;  // columns of the plane
  int64_t end = 0;    // of the last window

  // columns [begin, begin + size) of n, with at most `before` of them in front of the plane
  Span(int64_t begin, int64_t size, int64_t n, int64_t before) {
    lead = round_up(before, LF);
    from = std::min(std::max<int64_t>(begin, 0), n), to = std::max(std::min(begin + size, n), from);
    first = lead - (from - begin);
    end = first + size;
  }
  // store(place, value) for every vector of what surrounds the elements of `rows` rows
  template <class E, class V, class Store>
  EP_INLINE void fill(E* tile, int64_t pitch, int64_t rows, V before, V after, const Store& store) const {
    if (first < lead)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < lead; j += LF) store(tile + r * pitch + j, before);
    if (lead + to - from < end)
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = lead + to - from; j < end; j += LF) store(tile + r * pitch + j, after);
  }
};

// Rows side by side: the S phases of each (elements p, p + S, ...) in sheets of their own, so that every element of a window
// lies beside those of the windows next to it. What lies between two rows ends the one and begins the other.
struct Sheets {
  float* to = nullptr;           // first element of the first row
  int64_t pitch = 0, sheet = 0;  // positions from row to row, from phase to phase
  int64_t before = 0;            // positions in front of a row that are read

  // where tap t of the first row's windows begins, the first window beginning `left` elements before the row
  float* tap(int64_t t, int64_t left, int64_t stride) const {
    const int64_t shift = floor_of(t - left, stride);
    return to + (t - left - shift * stride) * sheet + shift;
  }
};

template <int S, int... P> EP_INLINE void store_phases(float* to, int64_t sheet, const vf* v, std::integer_sequence<int, P...>) {
  (storeu(to + P * sheet, phase<P, S>(v)), ...);
}
template <int S, bool FULL, class T> EP_INLINE vi spread_row(const T* from, int64_t n, vf around, const Sheets& s, float* to) {
  vi nan{};
  for (int64_t c = 0; c < n; c += S * LF) {
    vf v[S];
    for (int i = 0; i < S; ++i) v[i] = FULL ? load_as(from + c + i * LF) : load_until(from + c + i * LF, from + n);
    for (int i = 0; i < S; i += 2) nan |= unordered(v[i], v[i + 1 < S ? i + 1 : i]);
    store_phases<S>(to + c / S, s.sheet, v, std::make_integer_sequence<int, S>{});
  }
  for (int p = 0; p < S; ++p)
    for (int64_t j = (n - p + S - 1) / S; j < s.pitch; j += LF) storeu(to + p * s.sheet + j, around);
  return nan;
}
// `rows` rows of n elements, `step` apart, of memory that ends at `end`; says where there is NaN
template <int S, class T>
vi spread_rows(const T* from, int64_t rows, int64_t step, int64_t n, const T* end, float around, const Sheets& s) {
  vi nan{};
  const vf fill = splat<vf>(around);
  for (int p = 0; p < S; ++p)
    for (int64_t j = round_up(s.before, LF); j > 0; j -= LF) storeu(s.to + p * s.sheet - j, fill);
  const int64_t room = end - from - round_up(n, S * LF);
  const int64_t full = room < 0 ? 0 : std::min(rows, room / step + 1);  // whose last vectors end before the memory does
  int64_t r = 0;
  for (; r < full; ++r) nan |= spread_row<S, true>(from + r * step, n, fill, s, s.to + r * s.pitch);
  for (; r < rows; ++r) nan |= spread_row<S, false>(from + r * step, n, fill, s, s.to + r * s.pitch);
  return nan;
}

}  // namespace everypool
