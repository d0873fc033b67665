// Lines of elements along an axis, all of it: what running maxima and strips share.
#pragma once
#include "rows.h"

namespace everypool {

template <class F> bool with_real(int type, const F& f) { return type == FLOAT64 ? f(double{}) : with_type(type, f); }

// What is read `bytes` further on: hardware follows one stream, but not backwards beside one that is written, nor many rows.
EP_INLINE void prefetch(const void* p, int64_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + bytes));
}

}  // namespace everypool
