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

// How an axis tells its windows: by numbers, or where samples differ, by a list of them.
enum Kind { SLIDING, BINS, UP_TO, FROM, LISTED, KINDS };

// A window along one axis: elements start + t * step, t < count.
struct Window {
  int64_t start, count;
};

// One axis. Windows that are alike for all samples are numbers, so that a plan does not grow with the axis.
struct Axis {
  int64_t n = 1, out = 1, step = 1;
  int kind = SLIDING;
  int64_t kernel = 1, stride = 1, left = 0;  // SLIDING: window o begins at o * stride - left, before the axis clips it
  int64_t right = 0, all_kernel = 1, all_left = 0, all_step = 1;  // the same with the taps that no window finds, and padding behind
  bool has_cells = false;                    // cells are counted with explicit padding
  int middle = 0;                            // 1: of every window only its middle element, 2: the later one of two
  int run = 0;                               // 1: every element up to o, 2: from o on
  int64_t rows = 1;                          // LISTED: one for all samples, or one each
  std::vector<Window> listed;
  std::vector<int64_t> extent;
  int64_t most = 1;        // no window has more elements
  bool ordered = true;     // listed windows of the first row begin one after the other
  bool may_be_empty = false;

  bool slides() const { return kind == SLIDING && step == 1 && !middle && kernel <= 2 * n; }
  bool kept() const;   // every element is a window of its own
  bool whole() const;  // all elements are one window
  double elements() const;  // in all windows of a sample together
  int64_t most_holders() const;  // no element lies in more windows
  // windows that may hold element i: low(i) to high(i) - 1; not of a list
  int64_t low(int64_t i) const;
  int64_t high(int64_t i) const;
  // elements that lie before the windows from o on, and before the windows' ends up to o; not of a list
  int64_t begin(int64_t o) const { return kind == SLIDING ? clipped(o * stride - left) : kind == BINS ? o * n / out : kind == UP_TO ? 0 : o; }
  int64_t end(int64_t o) const {
    return kind == SLIDING ? clipped(o * stride - left + (kernel - 1) * step + 1) : kind == BINS ? ((o + 1) * n + out - 1) / out : kind == UP_TO ? o + 1 : n;
  }
  Window at(int64_t o, int64_t sample) const {
    const Window w = kind == LISTED ? listed[(rows > 1 ? sample * out : 0) + o] : unlisted(o);
    return middle && w.count > 0 ? middle_of(o, w) : w;
  }
  int64_t cells(int64_t o, int64_t sample) const;  // of a window, explicit padding with it

 private:
  friend class Cursor;
  int64_t clipped(int64_t i) const { return i < 0 ? 0 : i > n ? n : i; }
  Window unlisted(int64_t o) const {
    switch (kind) {
      case SLIDING: {
        const int64_t first = o * stride - left;
        return first >= 0 && first + (kernel - 1) * step < n ? Window{first, kernel} : inside(first);
      }
      case BINS: {
        const int64_t first = o * n / out;
        return {first, ((o + 1) * n + out - 1) / out - first};
      }
      default: return kind == UP_TO ? Window{0, o + 1} : Window{o, n - o};
    }
  }
  Window inside(int64_t first) const;  // of a window that begins there, what the axis leaves
  Window middle_of(int64_t o, Window whole) const;
};

// The windows of an axis, one after the other: where the next one begins needs no division.
class Cursor {
 public:
  Cursor(const Axis& axis, int64_t sample, int64_t o) : axis_(axis), sample_(sample), o_(o), kind_(axis.middle ? LISTED : axis.kind) {
    if (kind_ == SLIDING) first_ = o * axis.stride - axis.left, last_ = axis.n - 1 - (axis.kernel - 1) * axis.step;
    if (kind_ == BINS) first_ = o * axis.n / axis.out, rest_ = o * axis.n % axis.out, whole_ = axis.n / axis.out, part_ = axis.n % axis.out;
    find();
  }
  Window operator*() const { return window_; }
  void next() {
    ++o_;
    find();
  }

 private:
  const Axis& axis_;
  int64_t sample_, o_, first_ = 0, last_ = 0;      // last_: where the last window begins that the axis does not clip
  int64_t rest_ = 0, whole_ = 0, part_ = 0;        // of bins
  int kind_;
  Window window_{0, 0};

  void find() {
    if (kind_ == SLIDING) {
      window_ = first_ >= 0 && first_ <= last_ ? Window{first_, axis_.kernel} : axis_.inside(first_);
      first_ += axis_.stride;
    } else if (kind_ == BINS) {
      window_.start = first_;
      first_ += whole_, rest_ += part_;
      if (rest_ >= axis_.out) ++first_, rest_ -= axis_.out;
      window_.count = first_ + (rest_ > 0) - window_.start;
    } else if (o_ < axis_.out) {
      window_ = axis_.at(o_, sample_);
    }
  }
};

struct Fold {
  Axis axis[3];
  int64_t in = 1, out = 1, taps = 1;
  int band_axis = 2;  // the first axis that is longer than one: tiles are cut along it
  Method method = DIRECT;
  bool has_cells = false, own_position = false;
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
  bool too_large = false;    // the states of a plane do not fit the memory: the general loops decline

  bool per_sample_mask() const;
  int64_t bytes() const;  // that this plan keeps
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
void set_poison(int byte);  // what scratch and stack hold before they are used, so that tests see who reads it; -1: whatever is there
void poison_stack();
void fresh_memory(void* p, int64_t bytes);  // ask for huge pages before the first touch

}  // namespace everypool
