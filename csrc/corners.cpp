// Two running maxima, added plane by plane: what the first has found waits in cache for the second, so that memory sees the maps
// and the sum alone.
#include "corners.h"

#include <stdexcept>

#include "scans.h"

namespace everypool {
namespace {

constexpr int64_t BAND = 16 << 10;  // bytes of lines between two steps

struct Corner {
  const Plan* plans[2];  // down columns, along lines
  int down;              // which of the two is the first
  Course columns, lines;
  int64_t size, planes, band;        // elements of a plane, lines of a band: those of whole groups
  int64_t column_bytes, line_bytes;  // kept for a plane
  bool fits;

  Corner(const Plan& a, const Plan& b) {
    Course of_a, of_b;
    fits = scan_of(a, of_a) && scan_of(b, of_b) && a.N == b.N && a.C == b.C && a.type == b.type && a.folds[0].in == b.folds[0].in &&
           a.last == b.last && !a.pixels && !b.pixels && (of_a.inner == 1) != (of_b.inner == 1);
    if (!fits) return;
    down = of_a.inner == 1;
    plans[0] = down ? &b : &a, plans[1] = down ? &a : &b;
    columns = down ? of_b : of_a, lines = down ? of_a : of_b;
    fits = columns.inner % lines.n == 0;
    if (!fits) return;
    size = columns.n * columns.inner, planes = columns.outer;
    columns.outer = 1, lines.outer = size / lines.n;
    column_bytes = columns_aux_bytes(a.type, columns), line_bytes = lines_aux_bytes(a.type, lines);
    band = std::max<int64_t>(BAND / (lines.n * 4) / LF, 1) * LF;
  }
};

template <class T> struct Corners {
  const Corner& corner;
  const CornerCall& call;

  template <class P> static P* at(P* base, int64_t offset) {
    using U = std::conditional_t<std::is_const_v<P>, const T, T>;
    return base ? static_cast<P*>(static_cast<U*>(base) + offset) : nullptr;
  }
  static void add(const T* a, const T* b, int64_t number, T* y) {
    constexpr int L = Lane<Compute<T>>::L;
    int64_t j = 0;
    for (; j + L <= number; j += L) store_as(y + j, load_as(a + j) + load_as(b + j));
    if (j < number) store_part(y + j, load_part(a + j, number - j) + load_part(b + j, number - j), number - j);
  }
  // of one plane, or of a band of its lines from `line` on
  void one(bool along, int64_t plane, int64_t line, int64_t count, void* to) const {
    const int which = along ? 1 - corner.down : corner.down;  // of the maps
    const int64_t offset = plane * corner.size + line * corner.lines.n;
    Course course = along ? corner.lines : corner.columns;
    if (along) course.outer = count;
    const Plan& plan = *corner.plans[along];
    uint8_t* aux = call.aux;
    if (aux) {
      Course before = corner.lines;
      before.outer = line;
      aux += plane * (corner.column_bytes + corner.line_bytes) + (along ? corner.column_bytes + lines_aux_bytes(plan.type, before) : 0);
    }
    Call c;
    c.aux = {aux};
    if (call.back)
      c.grad = {const_cast<void*>(at(call.x[0], offset))}, c.dx = to;
    else
      c.x = at(call.x[which], offset), c.y = {to};
    const Pass pass = call.back ? GRADIENT : call.take ? TAKE : call.save ? WINNERS : VALUES;
    if (!(along ? lines_run : columns_run)(plan, course, c, pass)) throw std::bad_alloc();
  }
  void run(int64_t begin, int64_t end) const {
    const bool apart = call.back && call.y[0] != call.y[1];
    const int64_t n = corner.lines.n, all = corner.lines.outer;
    Scratch memory;
    T* found = apart ? nullptr : static_cast<T*>(memory.take((corner.size + corner.band * n) * (int64_t)sizeof(T)));
    T* band = found + (apart ? 0 : corner.size);
    for (int64_t plane = begin; plane < end; ++plane) {
      if (apart) {
        one(false, plane, 0, all, at(call.y[corner.down], plane * corner.size));
        one(true, plane, 0, all, at(call.y[1 - corner.down], plane * corner.size));
        continue;
      }
      one(false, plane, 0, all, found);
      for (int64_t line = 0; line < all; line += corner.band) {
        const int64_t count = std::min(corner.band, all - line);
        one(true, plane, line, count, band);
        add(found + line * n, band, count * n, static_cast<T*>(call.y[0]) + plane * corner.size + line * n);
      }
    }
  }
};

}  // namespace

int64_t corners_aux_bytes(const Plan& a, const Plan& b) {
  const Corner corner(a, b);
  return corner.fits ? corner.planes * (corner.column_bytes + corner.line_bytes) : -1;
}

bool corners_run(const Plan& a, const Plan& b, const CornerCall& call) {
  const Corner corner(a, b);
  if (!corner.fits) throw std::invalid_argument("a corner must be two running maxima over one map, along axes of their own");
  return with_real(a.type, [&](auto t) {
    using T = decltype(t);
    const int64_t bytes = corner.planes * corner.size * (int64_t)sizeof(T);
    fresh_memory(call.y[0], bytes);
    if (call.back && call.y[1] != call.y[0]) fresh_memory(call.y[1], bytes);
    return in_parallel(corner.planes, corner.planes * corner.size >= SERIAL, [&](int64_t begin, int64_t end) {
      Corners<T>{corner, call}.run(begin, end);
    });
  });
}

bool cross_sum(int type, int64_t planes, int64_t high, int64_t wide, const void* columns, const void* rows, void* y) {
  if (type >= INT8) return false;
  return with_real(type, [&](auto t) {
    using T = decltype(t);
    using C = Compute<T>;
    using V = typename Lane<C>::V;
    constexpr int L = Lane<C>::L;
    fresh_memory(y, planes * high * wide * (int64_t)sizeof(T));
    return in_parallel(planes, planes * high * wide >= SERIAL, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin * high; line < end * high; ++line) {
        const T* column = static_cast<const T*>(columns) + line / high * wide;
        const V row = splat<V>(load_part(static_cast<const T*>(rows) + line, 1)[0]);
        T* to = static_cast<T*>(y) + line * wide;
        int64_t j = 0;
        for (; j + L <= wide; j += L) store_as(to + j, load_as(column + j) + row);
        if (j < wide) store_part(to + j, load_part(column + j, wide - j) + row, wide - j);
      }
    });
  });
}

}  // namespace everypool
