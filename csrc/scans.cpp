#include "special.h"

namespace everypool {

bool scans_suits(const Plan&, bool) { return false; }
int64_t scans_aux_bytes(const Plan&, size_t) { return 0; }
bool scans_forward(const Plan&, const Call&) { return false; }
bool scans_backward(const Plan&, const Call&) { return false; }

}  // namespace everypool
