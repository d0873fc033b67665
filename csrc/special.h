// Loops of their own for what is common, each in its file. `suits` is asked when a plan is made: does this file do such calls
// without (`training` false) or with a gradient? What is kept for the gradient has a layout of the file's own.
#pragma once
#include "plan.h"

namespace everypool {

#define EP_SPECIAL(name)                                          \
  bool name##_suits(const Plan& plan, bool training);             \
  int64_t name##_aux_bytes(const Plan& plan, size_t fold);        \
  /* false: only the definition itself can compute these values */ \
  bool name##_forward(const Plan& plan, const Call& call);        \
  bool name##_backward(const Plan& plan, const Call& call);

EP_SPECIAL(rows)     // sliding windows over planes, a vector along the row
EP_SPECIAL(globals)  // the whole plane as one window
EP_SPECIAL(scans)    // running maxima
EP_SPECIAL(strips)   // lines along every axis, in one read
EP_SPECIAL(pixels)   // small windows where channels lie side by side

// The loops for everything, to which they may turn for values that they do not do themselves.
int64_t general_aux_bytes(const Plan& plan, size_t fold);
bool general_forward(const Plan& plan, const Call& call);
bool general_backward(const Plan& plan, const Call& call);

}  // namespace everypool
