// Running maxima down columns: a vector of them at a time, row by row, each row joined with the result before it.
#include "scans.h"

namespace everypool {
namespace {

constexpr int64_t WIDTH = 2048;  // columns that are run down together: their sums stay in the first cache

template <class T> struct Columns {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr int L = Lane<C>::L;

  const Course& course;
  const int64_t words = (course.inner + L - 1) / L;                        // of a row; the last one's columns may overlap
  const int64_t parts = std::max<int64_t>(course.inner / WIDTH, 1);
  const int64_t number = course.outer * parts;

  // Calls f(place of the vector's first element, of its word, number within the part, row above) down or up the columns.
  // Towards the first row everything goes backwards: one stream that the prefetcher follows.
  template <bool UP, class First, class F> EP_INLINE void each(int64_t unit, const First& first, const F& f) const {
    const int64_t low = unit % parts * words / parts, high = (unit % parts + 1) * words / parts;
    const int64_t before = UP ? course.inner : -course.inner;
    for (int64_t i = 0; i < course.n; ++i) {
      const int64_t row = unit / parts * course.n + (UP ? course.n - 1 - i : i);
      for (int64_t k = 0; k < high - low; ++k) {
        const int64_t word = UP ? high - 1 - k : low + k;
        const int64_t at = row * course.inner + std::min(word * L, course.inner - L);
        if (i == 0)
          first(at, row * words + word, k);
        else
          f(at, row * words + word, k, at + before);
      }
    }
  }

  template <bool UP, class F> EP_INLINE void units(int64_t begin, int64_t end, const F& f) const {
    for (int64_t unit = begin; unit < end; ++unit) f(UP ? begin + end - 1 - unit : unit);
  }

  template <bool UP, Pass PASS, bool LAST> void forward(const Call& call, int64_t begin, int64_t end) const {
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y[0]);
    Word<C>* won = static_cast<Word<C>*>(call.aux[0]);
    units<UP>(begin, end, [&](int64_t unit) {
      each<UP>(
          unit,
          [&](int64_t at, int64_t word, int64_t) {
            store_as(y + at, load_as(x + at));
            if (PASS == WINNERS) won[word] = (Word<C>)((1 << L) - 1);
          },
          [&](int64_t at, int64_t word, int64_t, int64_t above) {
            const V value = load_as(x + at), before = load_as(y + above);
            if constexpr (PASS == TAKE) {
              store_as(y + at, unpacked<M>(won[word]) ? value : before);
            } else {
              if constexpr (PASS == WINNERS) won[word] = (Word<C>)packed((M)begins<LAST>(value, before));
              store_as(y + at, value != value ? value : largest(value, before));
            }
          });
    });
  }

  // The other way round: UP where the maxima ran down.
  template <bool UP> void backward(const Call& call, int64_t begin, int64_t end) const {
    const T* g = static_cast<const T*>(call.grad[0]);
    T* dx = static_cast<T*>(call.dx);
    const Word<C>* won = static_cast<const Word<C>*>(call.aux[0]);
    Scratch memory;
    W* sums = static_cast<W*>(memory.take((words / parts + 1) * sizeof(W)));
    units<UP>(begin, end, [&](int64_t unit) {
      const auto add = [&](int64_t at, int64_t word, int64_t k) {
        W sum = sums[k];
        store_as(dx + at, collected<C>(load_as(g + at), unpacked<M>(won[word]), sum));
        sums[k] = sum;
      };
      each<UP>(
          unit,
          [&](int64_t at, int64_t word, int64_t k) {
            sums[k] = Lane<C>::zero();
            add(at, word, k);
          },
          [&](int64_t at, int64_t word, int64_t k, int64_t) { add(at, word, k); });
    });
  }

  template <bool UP> void pass(const Call& call, Pass pass, bool last, int64_t begin, int64_t end) const {
    if (pass == GRADIENT)
      backward<!UP>(call, begin, end);
    else if (pass == TAKE)
      forward<UP, TAKE, false>(call, begin, end);
    else if (pass == VALUES)
      forward<UP, VALUES, false>(call, begin, end);
    else if (last)
      forward<UP, WINNERS, true>(call, begin, end);
    else
      forward<UP, WINNERS, false>(call, begin, end);
  }
};

}  // namespace

int64_t columns_aux_bytes(int type, const Course& course) {
  int64_t bytes = 0;
  with_real(type, [&](auto t) {
    bytes = course.outer * course.n * Columns<decltype(t)>{course}.words * (int64_t)sizeof(Word<Compute<decltype(t)>>);
    return true;
  });
  return bytes;
}

bool columns_run(const Plan& plan, const Course& course, const Call& call, Pass pass) {
  return with_real(plan.type, [&](auto t) {
    const Columns<decltype(t)> columns{course};
    return in_parallel(columns.number, course.outer * course.n * course.inner >= SCANS_SERIAL, [&](int64_t begin, int64_t end) {
      if (course.backwards)
        columns.template pass<true>(call, pass, plan.last, begin, end);
      else
        columns.template pass<false>(call, pass, plan.last, begin, end);
    });
  });
}

}  // namespace everypool
