// What one call computes: which elements belong to which windows, and what becomes of them. Knows no Python.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace everypool {

enum Type { FLOAT32, FLOAT64, BFLOAT16, FLOAT16, INT8, UINT8, INT16, INT32, INT64, TYPES };
enum Op { MAX, MEAN, POWER, SOFT, LOGSUMEXP, OPS };
enum Index { NO_INDEX, TAP, POSITION };      // of a maximum: none, kept for the gradient, returned
enum Divisor { VALID, FIXED, CELLS };        // of a mean: valid elements, a number, cells with explicit padding
enum Signed { CLAMP, ABS };                  // how a power mean makes values positive
enum Method { DIRECT, SEPARABLE };
enum Special { GENERAL, ROWS, GLOBALS, SCANS, STRIPS, PIXELS };  // loops of their own for what is common

constexpr int64_t SERIAL = 32768;  // elements below which threads cost more than they bring

// One axis: window o holds start[o] + t * step, t < count[o]; a row of them per sample where samples differ.
struct Axis {
  int64_t n = 1, out = 1, step = 1, rows = 1;
  int run = 0;  // 1: every element up to o, 2: from o on
  int64_t slide = 0, left = 0;  // stride and left padding of unclipped windows of `kernel` elements; 0: not sliding
  int64_t kernel = 1;
  std::vector<int64_t> start, count, extent;
  int64_t most = 1;     // elements in the largest window
  bool ordered = true;  // windows of the first row begin one after the other

  bool kept() const;   // every element is a window of its own
  bool whole() const;  // all elements are one window
  const int64_t* starts(int64_t sample) const { return start.data() + (rows > 1 ? sample * out : 0); }
  const int64_t* counts(int64_t sample) const { return count.data() + (rows > 1 ? sample * out : 0); }
  const int64_t* extents(int64_t sample) const { return extent.data() + (rows > 1 ? sample * out : 0); }
};

struct Fold {
  Axis axis[3];
  int64_t in = 1, out = 1, taps = 1;
  int band_axis = 2;  // the first axis that is longer than one: tiles are cut along it
  Method method = DIRECT;
  bool has_extent = false, own_position = false;
};

struct Plan {
  int64_t N = 0, C = 0, mask_channels = 0;  // 0: no mask
  int type = FLOAT32, op = MAX;
  bool pixels = false;      // channels lie side by side
  bool per_sample = false;  // windows or the mask differ between samples
  int index = NO_INDEX, divisor = VALID, sign = CLAMP;
  bool last = false, sum = false, plain_gradient = false;
  double eps = 0, fixed = 1;
  std::vector<Fold> folds;
  bool wide_index = false;  // a tap's number needs more than a byte
  int lanes = 1;            // of the instruction set that made this plan
  int64_t groups = 0, bands = 1;
  int special = GENERAL, special_training = GENERAL;  // without and with something kept for the gradient
  bool always_tile = false;  // also where the channels could be read as they lie

  bool per_sample_mask() const;
};

struct Call {
  const void* x = nullptr;
  const uint8_t* mask = nullptr;
  const double* parameter = nullptr;  // one for all or one per channel
  int64_t parameters = 0;
  std::vector<void*> y, aux, index, grad;  // one per fold
  void* dx = nullptr;
  double* dparameter = nullptr;  // (bands, N * C)
  bool save = false;             // fill aux
  bool take = false;             // of a maximum: the elements that aux says have won
};

// Throws std::invalid_argument for anything that a kernel must not be given.
Plan make_plan(const std::vector<int64_t>& numbers, const std::vector<double>& reals);
int64_t aux_bytes(const Plan& plan, size_t fold);
// false: the values need the definition itself (something infinite, or a range that float cannot hold)
bool forward(const Plan& plan, const Call& call);
bool backward(const Plan& plan, const Call& call);
void stream(const void* from, int64_t read, void* to, int64_t written);

using Task = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int (*)(int64_t begin, int64_t end, int64_t grain, Task, void* context);
void set_parallel_for(ParallelFor function);
void parallel(int64_t number, bool worth_it, Task task, void* context);
void fresh_memory(void* p, int64_t bytes);  // ask for huge pages before the first touch

}  // namespace everypool
