#include "special.h"

namespace everypool {

bool globals_suits(const Plan&, bool) { return false; }
int64_t globals_aux_bytes(const Plan&, size_t) { return 0; }
bool globals_forward(const Plan&, const Call&) { return false; }
bool globals_backward(const Plan&, const Call&) { return false; }

}  // namespace everypool
