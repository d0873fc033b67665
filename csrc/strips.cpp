// Lines along several axes of one map, in one read: which plans these loops do.
#include "strips.h"

#include "special.h"

namespace everypool {
namespace {

bool map_of(const Plan& plan, Map& map) {
  map.planes = plan.N * plan.C;
  for (size_t i = 0; i < plan.folds.size(); ++i) {
    int along = -1;
    for (int a = 0; a < 3; ++a) {
      const Axis& axis = plan.folds[i].axis[a];
      map.n[a] = axis.n;
      if (axis.kept()) continue;
      if (along >= 0 || axis.n == 1 || !axis.whole()) return false;
      along = a;
    }
    if (along < 0 || map.fold[along] >= 0) return false;
    map.fold[along] = (int)i;
  }
  // a plane's rows, its columns or both; all lines of a volume
  return map.fold[DEPTH] < 0 ? map.n[DEPTH] == 1 : map.fold[HEIGHT] >= 0 && map.fold[WIDTH] >= 0;
}

Map map_of(const Plan& plan) {
  Map map;
  map_of(plan, map);
  return map;
}

}  // namespace

bool strips_suits(const Plan& plan, bool) {
  Map map;
  if (plan.pixels || plan.mask_channels > 0 || plan.type >= INT8 || !map_of(plan, map) || map.n[WIDTH] < plan.lanes) return false;
  if (plan.op == MAX) return plan.index == NO_INDEX;
  return plan.op == MEAN && (plan.divisor != CELLS || !plan.folds[0].has_cells);
}

int64_t strips_aux_bytes(const Plan& plan, size_t fold) {
  return plan.op == MAX ? plan.N * plan.C * plan.folds[fold].out * (int64_t)sizeof(int32_t) : 0;
}

bool strips_forward(const Plan& plan, const Call& call) {
  return call.take ? strips_take(plan, map_of(plan), call) : strips_values(plan, map_of(plan), call);
}
bool strips_backward(const Plan& plan, const Call& call) { return strips_gradient(plan, map_of(plan), call); }

}  // namespace everypool
