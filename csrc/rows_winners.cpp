#include "rows.h"
namespace everypool {
bool rows_winners(const Plan&, const Grid&, const Call&) { return false; }
bool rows_take(const Plan&, const Grid&, const Call&) { return false; }
}
