#include "rows.h"
namespace everypool {
bool rows_gradient(const Plan&, const Grid&, const Call&) { return false; }
}
