// Running maxima down columns: a vector of them at a time, row by row, each row joined with the result before it.
#include "scans.h"

namespace everypool {
namespace {

constexpr int64_t AHEAD = 1024;  // bytes from what is read to what is asked for
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

  // Calls f(place of the vector's first element, of its word, its state, whether it is the first) down or up the columns. The
  // last vector of a row may overlap the one before it, so the states lie apart: what was just stored is loaded as it was.
  // Towards the first row everything goes backwards: one stream that the prefetcher follows.
  template <bool UP, class S, class F> EP_INLINE void each(int64_t begin, int64_t end, const F& f) const {
    Scratch memory;
    S* states = static_cast<S*>(memory.take((words / parts + 1) * sizeof(S)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t unit = UP ? begin + end - 1 - i : i, part = unit % parts, top = unit / parts * course.n;
      const int64_t low = part * words / parts, high = (part + 1) * words / parts;
      rows<UP, true>(top + (UP ? course.n - 1 : 0), 1, low, high, states, f);
      rows<UP, false>(top + (UP ? course.n - 2 : 1), course.n - 1, low, high, states, f);
    }
  }
  template <bool UP, bool FIRST, class S, class F>
  EP_INLINE void rows(int64_t row, int64_t count, int64_t low, int64_t high, S* states, const F& f) const {
    for (int64_t i = 0; i < count; ++i, row += UP ? -1 : 1)
      for (int64_t k = 0; k < high - low; ++k) {
        const int64_t word = UP ? high - 1 - k : low + k;
        f(row * course.inner + std::min(word * L, course.inner - L), row * words + word, states[k], std::bool_constant<FIRST>{});
      }
  }

  template <bool UP, Pass PASS, bool LAST> void forward(const Call& call, int64_t begin, int64_t end) const {
    const T* x = static_cast<const T*>(call.x);
    T* y = static_cast<T*>(call.y[0]);
    Word<C>* won = static_cast<Word<C>*>(call.aux[0]);
    each<UP, V>(begin, end, [&](int64_t at, int64_t word, V& state, auto first) __attribute__((always_inline)) {
      prefetch(x + at, UP ? -AHEAD : AHEAD);
      const V value = load_as(x + at), before = state;
      if constexpr (first) {
        state = value;
        if constexpr (PASS == WINNERS) won[word] = (Word<C>)((1 << L) - 1);
      } else if constexpr (PASS == TAKE) {
        state = unpacked<M>(won[word]) ? value : before;
      } else {
        state = value != value ? value : largest(value, before);
        if constexpr (PASS == WINNERS) won[word] = (Word<C>)packed((M)begins<LAST>(value, before));
      }
      store_exactly(y + at, state);
    });
  }

  // The other way round: UP where the maxima ran down.
  template <bool UP> void backward(const Call& call, int64_t begin, int64_t end) const {
    const T* g = static_cast<const T*>(call.grad[0]);
    T* dx = static_cast<T*>(call.dx);
    const Word<C>* won = static_cast<const Word<C>*>(call.aux[0]);
    each<UP, W>(begin, end, [&](int64_t at, int64_t word, W& state, auto first) __attribute__((always_inline)) {
      prefetch(g + at, UP ? -AHEAD : AHEAD);
      W sum = first ? Lane<C>::zero() : state;
      store_as(dx + at, collected<C>(load_as(g + at), unpacked<M>(won[word]), sum));
      state = sum;
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
    return in_parallel(columns.number, course.outer * course.n * course.inner >= SERIAL, [&](int64_t begin, int64_t end) {
      if (course.backwards)
        columns.template pass<true>(call, pass, plan.last, begin, end);
      else
        columns.template pass<false>(call, pass, plan.last, begin, end);
    });
  });
}

}  // namespace everypool
