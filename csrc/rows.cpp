#include "special.h"

namespace everypool {

bool rows_suits(const Plan&, bool) { return false; }
int64_t rows_aux_bytes(const Plan&, size_t) { return 0; }
bool rows_forward(const Plan&, const Call&) { return false; }
bool rows_backward(const Plan&, const Call&) { return false; }

}  // namespace everypool
