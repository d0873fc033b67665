// Lines along several axes of one map, in one read: what the forward and the backward loops share.
#pragma once
#include "lines.h"

namespace everypool {

enum Along { DEPTH, HEIGHT, WIDTH };  // the axis of a fold's lines

struct Map {
  int64_t planes = 0, n[3] = {1, 1, 1};
  int fold[3] = {-1, -1, -1};  // whose lines run along that axis
};

inline double scale(const Plan& plan, int64_t n) { return 1 / (plan.divisor == FIXED ? plan.fixed : double(n)); }  // of a mean

// Which lines there are, known to the compiler.
constexpr int DEEP = 1 << DEPTH, TALL = 1 << HEIGHT, FLAT = 1 << WIDTH;
template <int LINES> using Which = std::integral_constant<int, LINES>;

// make(Which<...>{}).plane(number) for all planes
template <class F> bool each_plane(const Map& map, const F& make) {
  const bool worth_it = map.planes * map.n[DEPTH] * map.n[HEIGHT] * map.n[WIDTH] >= SERIAL;
  return in_parallel(map.planes, worth_it, [&](int64_t begin, int64_t end) {
    const auto planes = [&](auto lines) {
      auto loops = make(lines);
      for (int64_t number = begin; number < end; ++number) loops.plane(number);
    };
    if (map.fold[DEPTH] >= 0)
      planes(Which<DEEP | TALL | FLAT>{});
    else if (map.fold[WIDTH] < 0)
      planes(Which<TALL>{});
    else if (map.fold[HEIGHT] < 0)
      planes(Which<FLAT>{});
    else
      planes(Which<TALL | FLAT>{});
  });
}

template <class M, int... I> EP_INLINE M lane_numbers(std::integer_sequence<int, I...>) { return M{I...}; }
template <class M> EP_INLINE M lane_numbers() {
  return lane_numbers<M>(std::make_integer_sequence<int, sizeof(M) / sizeof(M{}[0])>{});
}

bool strips_values(const Plan& plan, const Map& map, const Call& call);    // forward, with or without what has won
bool strips_take(const Plan& plan, const Map& map, const Call& call);      // the elements that have won
bool strips_gradient(const Plan& plan, const Map& map, const Call& call);  // backward

}  // namespace everypool
