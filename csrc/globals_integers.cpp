// The largest integer of a whole plane, of which only the value is wanted: read as it lies, nothing is copied or numbered.
#include <algorithm>

#include "globals.h"

namespace everypool {
namespace {

template <class T> bool run(const Plan& plan, const Call& call) {
  const int64_t n = plan.folds[0].in, planes = plan.N * plan.C;
  return in_parallel(planes, planes * n >= SERIAL, [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      const T* x = static_cast<const T*>(call.x) + plane * n;
      T top = std::numeric_limits<T>::lowest();
      for (int64_t i = 0; i < n; ++i) top = std::max(top, x[i]);
      static_cast<T*>(call.y[0])[plane] = top;
    }
  });
}

}  // namespace

bool global_integers_forward(const Plan& plan, const Call& call) {
  switch (plan.type) {
    case INT8: return run<int8_t>(plan, call);
    case UINT8: return run<uint8_t>(plan, call);
    case INT16: return run<int16_t>(plan, call);
    case INT32: return run<int32_t>(plan, call);
    default: return run<int64_t>(plan, call);
  }
}

}  // namespace everypool
