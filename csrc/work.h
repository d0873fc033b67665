// Types and threads: how the loops for what is common are started.
#pragma once
#include <atomic>
#include <new>
#include <type_traits>

#include "plan.h"
#include "tile.h"

namespace everypool {

constexpr int FLOAT_TAPS = 9;  // elements that are summed in float before they go to double

// f(begin, end) on torch's threads; false where there was no memory
template <class F> bool in_parallel(int64_t number, bool worth_it, const F& f) {
  struct Context {
    const F& f;
    std::atomic<bool> failed{false};
  } context{f};
  if (number == 0) return true;
  parallel(
      number, worth_it,
      [](int64_t begin, int64_t end, void* p) {
        Context& c = *static_cast<Context*>(p);
        try {
          c.f(begin, end);
        } catch (const std::bad_alloc&) {
          c.failed = true;
        }
      },
      &context);
  return !context.failed;
}

template <class F> bool with_type(int type, const F& f) {
  switch (type) {
    case FLOAT32: return f(float{});
    case BFLOAT16: return f(bfloat16{});
    default: return f(float16{});
  }
}

// f with the number as a constant where it is one of N, else with 0
template <int... N, class F> EP_INLINE void with_constant(int64_t n, const F& f) {
  const bool found = ((n == N && (f(std::integral_constant<int, N>{}), true)) || ...);
  if (!found) f(std::integral_constant<int, 0>{});
}

}  // namespace everypool
