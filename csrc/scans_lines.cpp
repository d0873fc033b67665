// Running maxima along lines. Forward: a vector of one line at a time, its running maxima found among its lanes. Backward:
// as many lines as a vector has lanes, transposed, so that every lane adds up one line.
#include "scans.h"

namespace everypool {
namespace {

// Lanes joined with those before them; to be joined with itself does not change a maximum.
template <bool BACK, int S, class V, int... I> EP_INLINE V joined(V v, std::integer_sequence<int, I...> lanes) {
  constexpr int L = sizeof...(I);
  if constexpr (S == L) {
    return v;
  } else {  // every second block of S lanes, with the last lane of the block before it
    constexpr auto source = [](int lane) { return (lane & S) ? (lane & ~(2 * S - 1)) + S - 1 : lane; };
    const V before = __builtin_shufflevector(v, v, (BACK ? L - 1 - source(L - 1 - I) : source(I))...);
    return joined<BACK, 2 * S>(largest(v, before), lanes);
  }
}
template <bool BACK, class V, int... I> EP_INLINE V moved(V v, V last, std::integer_sequence<int, I...>) {  // by one lane
  constexpr int L = sizeof...(I);
  return __builtin_shufflevector(v, last, (BACK ? I + 1 : I == 0 ? L : I - 1)...);
}

template <int LANE, class V, int... I> EP_INLINE V lane_everywhere(V v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (LANE + 0 * I)...);
}

// A word for each lane. A byte is spread over all of its lane: that is one shuffle, and only its own bits are asked for.
template <class M, int... I> EP_INLINE M words_of_lanes(const uint8_t* p, std::integer_sequence<int, I...>) {
  constexpr int size = sizeof(M{}[0]), lanes = sizeof(M) / size, together = std::min<int>(sizeof(M), 16);
  using All = std::conditional_t<lanes == 8, uint64_t, std::conditional_t<lanes == 4, uint32_t, uint16_t>>;
  typedef All Alls __attribute__((vector_size(sizeof(M))));
  typedef uint8_t Bytes __attribute__((vector_size(sizeof(M))));
  All all;
  std::memcpy(&all, p, sizeof all);
  const Bytes bytes = (Bytes)splat<Alls>(all);
  return (M)__builtin_shufflevector(bytes, bytes, (I / together * together + I / size)...);
}
template <class M> EP_INLINE M words_of_lanes(const uint8_t* p) {
  return words_of_lanes<M>(p, std::make_integer_sequence<int, sizeof(M)>{});
}
template <class M> EP_INLINE M words_of_lanes(const uint16_t* p) {
  return __builtin_convertvector(loadu<typename Packed<uint16_t, sizeof(M) / sizeof(M{}[0])>::type>(p), M);
}

template <class T> struct Lines {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  using W = typename Lane<C>::W;
  static constexpr int L = Lane<C>::L;
  static constexpr auto LANES = std::make_integer_sequence<int, L>{};

  const Course& course;
  const int64_t n = course.n;
  const int64_t blocks = (n + L - 1) / L;  // of a line; the second begins within the first where L does not divide n
  const int64_t groups = (course.outer + L - 1) / L;

  // Where a block begins in the order of the run, the lanes that the block before it has too, and the first place in memory.
  int64_t first(int64_t block) const { return block == 0 ? 0 : n - (blocks - block) * L; }
  int shared(int64_t block) const { return block == 1 ? (int)(blocks * L - n) : 0; }
  template <bool BACK> int64_t place(int64_t block) const { return BACK ? n - L - first(block) : first(block); }
  template <bool BACK> static constexpr int lane(int j) { return BACK ? L - 1 - j : j; }

  // words of one line: of the block of all lines of its group, one after the other
  int64_t word(int64_t line, int64_t block) const { return (line / L * blocks + block) * L + line % L; }

  template <bool BACK, class F> EP_INLINE void each(int64_t begin, int64_t end, const F& f) const {
    for (int64_t i = begin; i < end; ++i) f(BACK ? begin + end - 1 - i : i);
  }

  // ---- forward

  // false: there is NaN, which these maxima do not keep
  template <bool BACK, bool KEEP, bool LAST> EP_INLINE bool line(const T* x, T* y, Word<C>* won) const {
    const V start = load_as(x + place<BACK>(0)), beginning = joined<BACK, 1>(start, LANES);
    M odd = (M)(start != start);
    if constexpr (KEEP) {
      const V before = moved<BACK>(beginning, beginning, LANES);
      won[0] = (Word<C>)(packed((M)begins<LAST>(start, before)) | 1 << lane<BACK>(0));
    }
    V last = lane_everywhere<lane<BACK>(L - 1)>(beginning, LANES);
    for (int64_t block = 1; block < blocks; ++block) {
      const V value = load_as(x + place<BACK>(block)), found = largest(joined<BACK, 1>(value, LANES), last);
      odd |= (M)(value != value);
      if constexpr (KEEP) won[block * L] = (Word<C>)packed((M)begins<LAST>(value, moved<BACK>(found, last, LANES)));
      store_exactly(y + place<BACK>(block), found);
      last = lane_everywhere<lane<BACK>(L - 1)>(found, LANES);
    }
    store_exactly(y + place<BACK>(0), beginning);  // over what the second block has found of its elements
    return !any(odd);
  }

  // One element after the other: f(value, whether it is the first, block, lane) gives the result.
  template <bool BACK, class F> void slowly(const T* x, T* y, const F& f) const {
    for (int64_t block = 0; block < blocks; ++block) {
      V value = load_as(x + place<BACK>(block)), result = load_as(y + place<BACK>(block));
      for (int j = shared(block); j < L; ++j) {
        const int i = lane<BACK>(j);
        result[i] = f(value[i], block + j == 0, block, i);
      }
      store_exactly(y + place<BACK>(block), result);
    }
  }
  template <bool BACK, bool KEEP, bool LAST> void line_with_nan(const T* x, T* y, Word<C>* won) const {
    C most = 0;
    slowly<BACK>(x, y, [&](C value, bool start, int64_t block, int i) {
      const bool better = start || begins<LAST>(value, most);
      if (better) most = value;
      if constexpr (KEEP) won[block * L] = (Word<C>)((won[block * L] & ~(1 << i)) | (better << i));
      return most;
    });
  }
  template <bool BACK> void taken(const T* x, T* y, const Word<C>* won) const {
    C last = 0;
    slowly<BACK>(x, y, [&](C value, bool, int64_t block, int i) { return last = won[block * L] >> i & 1 ? value : last; });
  }

  template <bool BACK, Pass PASS, bool LAST> void forward(const Call& call, int64_t begin, int64_t end) const {
    each<BACK>(begin * L, std::min(end * L, course.outer), [&](int64_t i) {
      const T* x = static_cast<const T*>(call.x) + i * n;
      T* y = static_cast<T*>(call.y[0]) + i * n;
      Word<C>* won = PASS == VALUES ? nullptr : static_cast<Word<C>*>(call.aux[0]) + word(i, 0);
      if constexpr (PASS == TAKE) {
        taken<BACK>(x, y, won);
      } else if (!line<BACK, PASS == WINNERS, LAST>(x, y, won)) {
        line_with_nan<BACK, PASS == WINNERS, LAST>(x, y, won);
      }
    });
  }

  // ---- backward

  template <bool BACK, bool PART> EP_INLINE void spread(const T* const* g, T* const* dx, const Word<C>* won, int64_t block, W& sum) const {
    const int64_t at = place<BACK>(block);
    V rows[L];
    for (int i = 0; i < L; ++i) {
      prefetch(g[i] + at, (BACK ? L : -L) * n * (int64_t)sizeof(T));
      rows[i] = load_as(g[i] + at);
    }
    transpose(rows);
    const M words = words_of_lanes<M>(won + block * L);
    for (int j = L - 1; j >= 0; --j) {
      if (PART && j < shared(block)) break;  // these are written once more, with the block before
      const int i = lane<BACK>(j);
      rows[i] = collected<C>(rows[i], (M)((words & (1 << i)) == 1 << i), sum);
    }
    transpose(rows);
    for (int i = L - 1; i >= 0; --i) store_as(dx[i] + at, rows[i]);  // what stands for a line that is missing goes first
  }

  template <bool BACK> void backward(const Call& call, int64_t begin, int64_t end) const {
    each<!BACK>(begin, end, [&](int64_t group) {
      const T* g[L];
      T* dx[L];
      for (int i = 0; i < L; ++i) {  // the last line stands for those missing
        const int64_t at = std::min(group * L + i, course.outer - 1) * n;
        g[i] = static_cast<const T*>(call.grad[0]) + at, dx[i] = static_cast<T*>(call.dx) + at;
      }
      const Word<C>* won = static_cast<const Word<C>*>(call.aux[0]) + word(group * L, 0);
      W sum = Lane<C>::zero();
      for (int64_t block = blocks - 1; block > 1; --block) spread<BACK, false>(g, dx, won, block, sum);
      if (blocks > 1) spread<BACK, true>(g, dx, won, 1, sum);
      spread<BACK, false>(g, dx, won, 0, sum);
    });
  }

  template <bool BACK> void pass(const Call& call, Pass pass, bool last, int64_t begin, int64_t end) const {
    if (pass == GRADIENT)
      backward<BACK>(call, begin, end);
    else if (pass == TAKE)
      forward<BACK, TAKE, false>(call, begin, end);
    else if (pass == VALUES)
      forward<BACK, VALUES, false>(call, begin, end);
    else if (last)
      forward<BACK, WINNERS, true>(call, begin, end);
    else
      forward<BACK, WINNERS, false>(call, begin, end);
  }
};

}  // namespace

int64_t lines_aux_bytes(int type, const Course& course) {
  int64_t bytes = 0;
  with_real(type, [&](auto t) {
    const Lines<decltype(t)> lines{course};
    bytes = lines.groups * lines.blocks * lines.L * (int64_t)sizeof(Word<Compute<decltype(t)>>);
    return true;
  });
  return bytes;
}

bool lines_run(const Plan& plan, const Course& course, const Call& call, Pass pass) {
  return with_real(plan.type, [&](auto t) {
    const Lines<decltype(t)> lines{course};
    return in_parallel(lines.groups, course.outer * course.n >= SERIAL, [&](int64_t begin, int64_t end) {
      if (course.backwards)
        lines.template pass<true>(call, pass, plan.last, begin, end);
      else
        lines.template pass<false>(call, pass, plan.last, begin, end);
    });
  });
}

}  // namespace everypool
