// Sliding windows over planes, a vector along the row: which plans these loops do, and which loop does what.
#include "rows_weights.h"
#include "special.h"

namespace everypool {
namespace {

bool line_of(const Axis& a, Line& line) {
  if (!a.slides() || a.may_be_empty) return false;
  line.n = a.n, line.out = a.out, line.kernel = a.kernel, line.stride = a.stride, line.left = a.left;
  return a.left >= 0 && a.left < a.kernel && a.kernel <= ROWS_KERNEL;
}

}  // namespace

bool grid_of(const Plan& plan, Grid& grid) {
  if (plan.folds.size() != 1) return false;
  const Fold& fold = plan.folds[0];
  grid.planes = plan.N * plan.C, grid.in = fold.in, grid.out = fold.out;
  if (!line_of(fold.axis[0], grid.d) || !line_of(fold.axis[1], grid.h) || !line_of(fold.axis[2], grid.w)) return false;
  if (grid.d.kernel == 1 && grid.d.stride == 1 && grid.d.left == 0 && grid.d.n == grid.d.out) {  // slices are planes
    grid.planes *= grid.d.n, grid.in /= grid.d.n, grid.out /= grid.d.n;
    grid.d = Line();
  }
  return true;
}

namespace {

constexpr int64_t FLAT_KERNEL = 16;  // along an axis: sums are in float
constexpr int64_t FLAT_BLOCKS = 128;  // the same where blocks of sums are added
constexpr int64_t BYTE = 256;        // taps that a byte tells apart

// Windows over planes, not volumes, and not too large.
bool flat(const Grid& g, int64_t most = FLAT_KERNEL) {
  return g.d.n == 1 && g.d.kernel == 1 && g.h.kernel <= most && g.w.kernel <= most;
}

// Rows of windows that fill no vector, where a vector across planes is the better one.
bool narrow(const Plan& plan, const Grid& g, bool training) {
  // across planes a weight is computed again for every window that has it
  const int64_t kernel = plan.op == SOFT && !training ? g.w.stride + 1 : 2 * g.w.stride;
  return g.w.out < LF && plan.N * plan.C >= LF && (g.w.kernel < kernel || g.w.n <= LF);
}

// Values and gradients of weighted windows; what these loops decline, the general ones do.
bool weighted_forward(const Plan& plan, const Call& call) {
  Grid grid;
  grid_of(plan, grid);
  const auto loop = plan.op == POWER ? rows_powers : by_blocks(SOFT, grid) ? rows_blocks : rows_soft;
  if (loop(plan, grid, call)) {
    if (call.save) general_flag(call) = 0;
    return true;
  }
  Call general = call;
  if (call.save) {
    general_flag(call) = 1;
    general.aux[0] = kept_of(call);
  }
  return general_forward(plan, general);
}
bool weighted_backward(const Plan& plan, const Call& call) {
  Grid grid;
  grid_of(plan, grid);
  if (!general_flag(call) && !call.dparameter) return rows_weighted_gradient(plan, grid, call);
  Call general = call;
  general.aux[0] = kept_of(call);
  std::vector<uint8_t> values, kept;
  if (!general_flag(call)) {  // the gradient of the weights' parameter: once more in the general way
    values.resize(grid.planes * grid.out * sizeof(double)), kept.resize(general_aux_bytes(plan, 0));
    general.y = {values.data()}, general.aux = {kept.data()}, general.index = {nullptr};
    general.save = true, general.dparameter = nullptr;
    if (!general_forward(plan, general)) return false;
    general.dparameter = call.dparameter;
  }
  return general_backward(plan, general);
}

}  // namespace

std::vector<double> factors(const Plan& plan, int axis) {
  const Fold& fold = plan.folds[0];
  const Axis& a = fold.axis[axis];
  std::vector<double> by;
  for (int64_t o = 0; o < a.out; ++o) {
    const int64_t cells = plan.divisor == CELLS && fold.has_cells ? a.cells(o, 0) : a.at(o, 0).count;
    by.push_back(plan.op == POWER && plan.sum ? 1 : plan.divisor != FIXED ? 1.0 / cells : axis == 2 ? 1 / plan.fixed : 1);
  }
  return by;
}

bool rows_suits(const Plan& plan, bool training) {
  const bool types = plan.type == FLOAT32 || plan.type == BFLOAT16 || plan.type == FLOAT16;
  const bool ops = plan.op == MEAN || plan.op == SOFT || plan.op == POWER || (plan.op == MAX && !plan.last && plan.index == NO_INDEX);
  Grid g;
  if (!types || !ops || plan.pixels || plan.mask_channels > 0 || !grid_of(plan, g)) return false;
  if (g.h.out == 1 && g.w.out == 1) return false;   // one window
  if (narrow(plan, g, training)) return false;
  if (plan.op == SOFT && !training && by_blocks(SOFT, g)) return flat(g, FLAT_BLOCKS);
  if (plan.op == SOFT || plan.op == POWER) return flat(g);
  if (g.d.kernel * g.h.kernel > 64 && g.d.kernel > 1) return false;  // every row of a box is read anew
  return !training || (plan.op == MAX ? g.d.kernel * g.h.kernel * g.w.kernel <= BYTE : flat(g));
}

int64_t rows_aux_bytes(const Plan& plan, size_t fold) {
  if (plan.op == SOFT || plan.op == POWER) return KEPT_HEADER + general_aux_bytes(plan, fold);
  return plan.op == MAX ? plan.N * plan.C * plan.folds[fold].out : 0;
}

bool rows_forward(const Plan& plan, const Call& call) {
  if (plan.op == SOFT || plan.op == POWER) return weighted_forward(plan, call);
  Grid grid;
  grid_of(plan, grid);
  if (call.take) return rows_take(plan, grid, call);
  if (call.save && plan.op == MAX) return rows_winners(plan, grid, call);
  return by_blocks(plan.op, grid) ? rows_blocks(plan, grid, call) : rows_values(plan, grid, call);
}

bool rows_backward(const Plan& plan, const Call& call) {
  if (plan.op == SOFT || plan.op == POWER) return weighted_backward(plan, call);
  Grid grid;
  grid_of(plan, grid);
  return plan.op == MAX ? rows_winners_gradient(plan, grid, call) : rows_weighted_gradient(plan, grid, call);
}

}  // namespace everypool
