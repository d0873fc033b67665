#include "special.h"

namespace everypool {

bool strips_suits(const Plan&, bool) { return false; }
int64_t strips_aux_bytes(const Plan&, size_t) { return 0; }
bool strips_forward(const Plan&, const Call&) { return false; }
bool strips_backward(const Plan&, const Call&) { return false; }

}  // namespace everypool
