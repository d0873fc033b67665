// Two running maxima, along axes of their own and over maps of their own, added.
#pragma once
#include "plan.h"

namespace everypool {

// Bytes to keep for the gradient, or -1: not what this does.
int64_t corners_aux_bytes(const Plan& a, const Plan& b);

struct CornerCall {
  const void* x[2] = {};    // each plan's map; of a gradient: that of the sum, once
  void* y[2] = {};          // the sum; of a gradient: each map's, or twice the same, which then gets both
  uint8_t* aux = nullptr;
  bool save = false, take = false, back = false;
};
// false: there was no memory
bool corners_run(const Plan& a, const Plan& b, const CornerCall& call);

// y[plane, i, j] = columns[plane, j] + rows[plane, i]; false: not of these types
bool cross_sum(int type, int64_t planes, int64_t high, int64_t wide, const void* columns, const void* rows, void* y);

}  // namespace everypool
