// From tensors to tiles and back: units of work, memory layouts, types and threads.
#include <algorithm>
#include <atomic>
#include <new>
#include <numeric>
#include <stdexcept>
#include <type_traits>

#include "folds.h"
#include "special.h"
#include "tile.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace everypool {
namespace {

ParallelFor parallel_for = nullptr;

constexpr int64_t TILE_BYTES = 40 << 10;      // of one band: it stays in the first cache
constexpr int64_t STATES = int64_t(1) << 29;  // bytes of states that one thread may hold

bool scattered(const Plan& p) {  // lanes are planes that lie apart, or pixels that do not fill a vector: copied to a tile
  return !p.pixels || p.C % p.lanes != 0 || p.per_sample_mask() || p.always_tile || (p.type != FLOAT32 && p.type != FLOAT64);
}

}  // namespace

bool Plan::per_sample_mask() const { return mask_channels > 0; }

int64_t Plan::bytes() const {
  int64_t size = sizeof(Plan) + folds.capacity() * sizeof(Fold);
  for (const Fold& f : folds)
    for (const Axis& a : f.axis) size += a.listed.capacity() * sizeof(Window) + a.extent.capacity() * sizeof(int64_t);
  return size;
}

// ---- axes ----------------------------------------------------------------------------------------------------------------

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// sum over o < out of first + o * stride, clipped to 0 and n
double clipped_sum(int64_t first, int64_t stride, int64_t out, int64_t n) {
  const int64_t low = std::clamp<int64_t>(floor_div(-first, stride) + 1, 0, out);
  const int64_t high = std::clamp<int64_t>(-floor_div(first - n, stride), low, out);
  return (double)(high - low) * ((double)first + (double)stride * 0.5 * (double)(low + high - 1)) + (double)n * (double)(out - high);
}

// elements of the largest of `out` bins
int64_t most_in_bin(int64_t n, int64_t out) { return (n + 2 * out - std::gcd(n, out) - 1) / out; }

}  // namespace

Window Axis::inside(int64_t first) const {
  const int64_t skipped = first < 0 ? (-first + step - 1) / step : 0;
  const int64_t start = first + skipped * step;
  if (start >= n || skipped >= kernel) return {0, 0};
  return {start, std::min(kernel - skipped, (n - 1 - start) / step + 1)};
}
Window Axis::middle_of(int64_t o, Window w) const {
  const int64_t upper = middle == 2;
  if (kind == FROM) return {n - 1 - (w.count - 1 + upper) / 2, 1};
  if (kind != SLIDING) return {w.start + (w.count - 1 + upper) / 2, 1};
  const int64_t first = o * stride - left, skipped = (w.start - first) / step;  // taps may be missing at both ends
  return {first + std::min(std::max(skipped, (kernel - 1 + upper) / 2), skipped + w.count - 1) * step, 1};
}
bool Axis::kept() const { return slides() && kernel == 1 && left == 0 && n == out && (stride == 1 || out == 1); }
bool Axis::whole() const { return rows == 1 && !run && out == 1 && at(0, 0).count == n; }
double Axis::elements() const {
  if (middle) return (double)out;
  switch (kind) {
    case SLIDING: return (clipped_sum((kernel - 1) * step + 1 - left, stride, out, n) - clipped_sum(-left, stride, out, n)) / (double)step;
    case BINS: return (double)(n + out - std::gcd(n, out));  // an element twice for every border within it
    case LISTED: {
      double total = 0;
      for (const Window& w : listed) total += (double)w.count;
      return total / (double)std::max<int64_t>(rows, 1);
    }
    default: return (double)n * ((double)n + 1) / 2;
  }
}
int64_t Axis::most_holders() const {
  if (kind != SLIDING) return most_in_bin(out, n);  // the bins of an element are bins, too
  if (!middle) return (kernel - 1) / stride + 1;
  const int64_t first = (kernel - 1 + (middle == 2)) / 2 * step - left;  // all those that are clipped come to lie together
  const int64_t before = first < 0 ? (-first + stride - 1) / stride : 0;
  const int64_t behind = std::max<int64_t>(out - 1 - floor_div(n - 1 - first, stride), 0);
  return 1 + std::max(before, behind);
}
int64_t Axis::low(int64_t i) const {
  if (kind == SLIDING) return std::clamp<int64_t>(floor_div(i + left - (kernel - 1) * step - 1, stride) + 1, 0, out);
  return kind == BINS ? i * out / n : kind == UP_TO ? i : 0;
}
int64_t Axis::high(int64_t i) const {
  if (kind == SLIDING) return std::clamp<int64_t>(floor_div(i + left, stride) + 1, 0, out);
  return kind == BINS ? ((i + 1) * out + n - 1) / n : kind == UP_TO ? out : i + 1;
}
int64_t Axis::cells(int64_t o, int64_t sample) const {
  if (kind == LISTED) return extent[(rows > 1 ? sample * out : 0) + o];
  const int64_t first = o * stride - all_left, end = n + right;
  if (first + (all_kernel - 1) * all_step < end) return all_kernel;
  return std::clamp<int64_t>(floor_div(end - first + all_step - 1, all_step), 1, all_kernel);
}

// ---- threads and memory ---------------------------------------------------------------------------------------------------

void set_parallel_for(ParallelFor function) { parallel_for = function; }

void parallel(int64_t number, bool worth_it, Task task, void* context) {
  if (parallel_for && worth_it && number > 1)
    parallel_for(0, number, 1, task, context);
  else
    task(0, number, context);
}

void fresh_memory(void* p, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < (int64_t(4) << 20)) return;
  const uintptr_t page = 4096, first = ((uintptr_t)p + page - 1) / page * page, last = ((uintptr_t)p + bytes) / page * page;
  if (last > first) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
  (void)p, (void)bytes;
#endif
}

namespace {

struct Band {
  int64_t low, high;  // windows along the band axis
  int64_t from, to;   // elements along it
};

int64_t below(const Fold& f) {  // elements per step of the band axis
  int64_t size = 1;
  for (int a = f.band_axis + 1; a < 3; ++a) size *= f.axis[a].n;
  return size;
}
int64_t windows_below(const Fold& f) {
  int64_t size = 1;
  for (int a = f.band_axis + 1; a < 3; ++a) size *= f.axis[a].out;
  return size;
}

Band band_of(const Plan& plan, const Fold& f, int64_t sample, int64_t band, bool back) {
  const Axis& a = f.axis[f.band_axis];
  if (plan.bands == 1) return {0, a.out, 0, a.n};
  Band b;
  b.low = band * a.out / plan.bands, b.high = (band + 1) * a.out / plan.bands;
  const auto last = [&](Window w) { return w.start + (w.count - 1) * a.step; };
  if (!back) {
    b.from = a.n, b.to = 0;
    if (a.kind != LISTED && b.low < b.high) b.from = a.begin(b.low), b.to = a.end(b.high - 1);
    for (int64_t o = b.low; a.kind == LISTED && o < b.high; ++o) {
      const Window w = a.at(o, sample);
      if (w.count > 0) b.from = std::min(b.from, w.start), b.to = std::max(b.to, last(w) + 1);
    }
    if (b.from >= b.to) b.from = b.to = 0;
    return b;
  }
  // elements from one band's first window to the next band's; then every window that reaches into them
  const auto border = [&](int64_t o) {
    return o <= 0 ? 0 : o >= a.out ? a.n : a.kind != LISTED ? a.begin(o) : a.ordered ? a.at(o, 0).start : o * a.n / a.out;
  };
  b.from = border(b.low), b.to = border(b.high);
  int64_t low = a.out, high = 0;
  if (a.kind != LISTED && b.from < b.to) low = a.low(b.from), high = a.high(b.to - 1);
  for (int64_t o = 0; a.kind == LISTED && o < a.out; ++o) {
    const Window w = a.at(o, sample);
    if (w.count == 0 || w.start >= b.to || last(w) < b.from) continue;
    low = std::min(low, o), high = std::max(high, o + 1);
  }
  b.low = std::min(low, high), b.high = high;
  return b;
}

template <class C> void settings_of(const Plan& plan, const Call& call, int64_t first, int groups, bool by_channel, Setting<C>* to) {
  constexpr int L = Lane<C>::L;
  for (int g = 0; g < groups; ++g) {
    Setting<C>& s = to[g];
    s.abs = plan.sign == ABS, s.sum = plan.sum, s.authors = plan.plain_gradient;
    s.eps = (C)plan.eps;
    s.p = splat<typename Lane<C>::V>(0);
    if (!call.parameter) continue;
    for (int i = 0; i < L; ++i) {
      int64_t plane = std::min(first + g * L + i, plan.N * plan.C - 1);
      int64_t channel = by_channel ? std::min(first % plan.C + g * L + i, plan.C - 1) : plane % plan.C;
      s.p[i] = (C)call.parameter[call.parameters > 1 ? channel : 0];
    }
  }
}

template <class T> struct Engine {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr int L = Lane<C>::L;

  const Plan& plan;
  const Call& call;
  bool back;
  std::atomic<bool> declined{false};

  // ---- lanes of a group -------------------------------------------------------------------------------------------------

  struct Group {
    int64_t sample, first;  // first plane
    int lanes;              // planes in use
    const T* x[L];
    int64_t channel;
  };

  Group group_of(int64_t number) const {
    Group g;
    int64_t end;
    if (plan.per_sample) {
      const int64_t per = (plan.C + L - 1) / L;
      g.sample = number / per, g.channel = number % per * L;
      g.first = g.sample * plan.C + g.channel;
      end = (g.sample + 1) * plan.C;
    } else {
      g.first = number * L;
      g.sample = 0, g.channel = g.first % plan.C;
      end = plan.N * plan.C;
    }
    g.lanes = (int)std::min<int64_t>(L, end - g.first);
    return g;
  }
  // where a plane begins, for `size` elements per plane, and how far its elements lie apart
  template <class P> P* plane(P* base, int64_t number, int64_t size) const {
    return plan.pixels ? base + number / plan.C * size * plan.C + number % plan.C : base + number * size;
  }

  template <class P> void gather(const P* base, const Group& g, int64_t size, int64_t offset, int64_t count, Compute<P>* tile) const {
    if (plan.pixels && g.channel + g.lanes <= plan.C) {
      gather_pixels(plane(base, g.first, size) + offset * plan.C, plan.C, g.lanes, count, tile);
      return;
    }
    const P* planes[L];
    for (int i = 0; i < L; ++i) planes[i] = plane(base, g.first + std::min(i, g.lanes - 1), size);
    gather_tile(planes, offset, count, tile);
  }
  template <class P> void scatter(P* base, const Group& g, int64_t size, int64_t offset, int64_t count, const Compute<P>* tile) const {
    if (plan.pixels) {
      scatter_pixels(plane(base, g.first, size) + offset * plan.C, plan.C, g.lanes, count, tile);
      return;
    }
    P* planes[L];
    for (int i = 0; i < L; ++i) planes[i] = plane(base, g.first + std::min(i, g.lanes - 1), size);
    scatter_tile(planes, g.lanes, offset, count, tile);
  }
  void gather_mask(const Group& g, int64_t size, int64_t offset, int64_t count, M* tile) const {
    for (int64_t p = 0; p < count; ++p) {
      M m;
      for (int i = 0; i < L; ++i) {
        int64_t channel = plan.mask_channels == 1 ? 0 : g.channel + std::min(i, g.lanes - 1);
        m[i] = call.mask[(g.sample * plan.mask_channels + channel) * size + offset + p] ? -1 : 0;
      }
      tile[p] = m;
    }
  }

  // ---- one unit of work ---------------------------------------------------------------------------------------------------

  void aux_of(View<C>& v, size_t i, const Fold& f, int64_t unit_group) const {
    const int64_t lanes = scattered(plan) ? plan.groups * L : plan.N * plan.C;
    v.component = lanes * f.out;
    if (scattered(plan)) {
      v.as = L;
      if (call.aux[i]) v.aux = static_cast<C*>(call.aux[i]) + unit_group * f.out * L;
    } else {
      v.as = plan.C;
      if (call.aux[i]) v.aux = static_cast<C*>(call.aux[i]) + unit_group * f.out * plan.C;
    }
    if (plan.op == MAX && call.aux[i]) {
      const int64_t at = unit_group * f.out * v.as;
      v.won = plan.wide_index ? (void*)(static_cast<int32_t*>(call.aux[i]) + at) : (void*)(static_cast<uint8_t*>(call.aux[i]) + at);
      v.aux = nullptr;
    }
  }

  // channels side by side, whole vectors of them: no copies
  bool pixel_unit(int64_t unit, Setting<C>* settings) {
    const int64_t sample = unit / plan.bands, band = unit % plan.bands;
    const int groups = (int)(plan.C / L);
    settings_of<C>(plan, call, sample * plan.C, groups, true, settings);
    bool bad = false;
    for (size_t i = 0; i < plan.folds.size(); ++i) {
      const Fold& f = plan.folds[i];
      const Band b = band_of(plan, f, sample, band, back);
      View<C> v;
      v.x = reinterpret_cast<const C*>(static_cast<const T*>(call.x) + sample * f.in * plan.C);
      v.xs = plan.C, v.ys = plan.C, v.groups = groups;
      v.low = b.low, v.high = b.high, v.from = b.from, v.to = b.to;
      aux_of(v, i, f, sample);
      v.take = call.take;
      v.y = reinterpret_cast<C*>(static_cast<T*>(back ? call.grad[i] : call.y[i]) + sample * f.out * plan.C);
      if (back) {
        v.dx = reinterpret_cast<C*>(static_cast<T*>(call.dx) + sample * f.in * plan.C);
        if (call.dparameter) v.slope = call.dparameter + (band * plan.N + sample) * plan.C;
        if (i == 0) {
          const int64_t row = below(f) * plan.C, before = v.from * row;
          std::memset((void*)(v.dx + before), 0, sizeof(C) * (v.to - v.from) * row);
        }
        windows_backward<C>(plan, f, sample, v, settings);
      } else {
        bad |= windows_forward<C>(plan, f, sample, v, settings, call.save, true);
      }
    }
    return bad;
  }

  bool tile_unit(int64_t unit, Scratch& tiles, Scratch& states) {
    const int64_t number = unit / plan.bands, band = unit % plan.bands;
    const Group g = group_of(number);
    Setting<C> setting;
    settings_of<C>(plan, call, g.first, 1, plan.per_sample, &setting);
    const Fold& first = plan.folds[0];
    const Band b = band_of(plan, first, g.sample, band, back);
    const int64_t row = below(first), offset = b.from * row, count = (b.to - b.from) * row;
    int64_t out = 0;
    for (const Fold& f : plan.folds) out = std::max(out, plan.bands > 1 ? (b.high - b.low) * windows_below(f) : f.out);
    // x, mask, dx, y
    const bool needs_x = !back || (plan.op != MAX && plan.op != MEAN);
    const int64_t vectors = count * (1 + (plan.mask_channels > 0) + back) + out;
    C* x = static_cast<C*>(tiles.take(vectors * (int64_t)sizeof(V)));
    C* dx = x + count * L;
    M* mask = reinterpret_cast<M*>(dx + (back ? count * L : 0));
    C* y = reinterpret_cast<C*>(mask + (plan.mask_channels > 0 ? count : 0));
    if (needs_x) gather(static_cast<const T*>(call.x), g, first.in, offset, count, x);
    if (plan.mask_channels > 0) gather_mask(g, first.in, offset, count, mask);
    bool nans = false;
    if constexpr (!std::is_same_v<C, int64_t>) {
      if (plan.op == MAX && !back) {
        M found{};
        for (int64_t p = 0; p < count; ++p) {
          V value = loadu<V>(x + p * L);
          found |= (M)(value != value);
        }
        nans = any(found);
      }
    }
    if (back && count > 0) std::memset((void*)dx, 0, sizeof(V) * count);
    double slope[L] = {};
    bool bad = false;
    for (size_t i = 0; i < plan.folds.size(); ++i) {
      const Fold& f = plan.folds[i];
      View<C> v;
      v.x = x, v.xs = L, v.x0 = offset, v.mask = plan.mask_channels > 0 ? mask : nullptr;
      v.y = y, v.ys = L, v.low = plan.bands > 1 ? b.low : 0, v.high = plan.bands > 1 ? b.high : f.axis[f.band_axis].out;
      v.y0 = v.low * windows_below(f);
      v.from = plan.bands > 1 ? b.from : 0, v.to = plan.bands > 1 ? b.to : f.axis[f.band_axis].n;
      v.planes = g.lanes;
      aux_of(v, i, f, number);
      v.take = call.take;
      const int64_t here = (v.high - v.low) * windows_below(f);
      int64_t* positions[L];
      if (!back && call.index[i]) {
        for (int k = 0; k < L; ++k) positions[k] = plane(static_cast<int64_t*>(call.index[i]), g.first + std::min(k, g.lanes - 1), f.out);
        v.position = positions, v.ps = plan.pixels ? plan.C : 1;
      }
      if (back) {
        gather(static_cast<const T*>(call.grad[i]), g, f.out, v.y0, here, y);
        v.dx = dx;
        if (call.dparameter) v.slope = slope;
      }
      if (f.method == DIRECT) {
        if (back)
          windows_backward<C>(plan, f, g.sample, v, &setting);
        else
          bad |= windows_forward<C>(plan, f, g.sample, v, &setting, call.save, nans);
      } else if constexpr (!std::is_same_v<C, int64_t>) {
        bad |= back ? folds_backward<C>(plan, f, g.sample, v, setting, states)
                    : folds_forward<C>(plan, f, g.sample, v, setting, call.save, states);
      } else {
        if (!back) bad |= folds_forward<C>(plan, f, g.sample, v, setting, call.save, states);
      }
      if (!back) scatter(static_cast<T*>(call.y[i]), g, f.out, v.y0, here, y);
    }
    if (back) {
      scatter(static_cast<T*>(call.dx), g, first.in, offset, count, dx);
      if (call.dparameter)
        for (int i = 0; i < g.lanes; ++i) call.dparameter[band * plan.N * plan.C + g.first + i] = slope[i];
    }
    return bad;
  }

  void units(int64_t begin, int64_t end) {
    try {
      Scratch tiles, states;
      const bool copies = scattered(plan);
      std::vector<Setting<C>> settings(copies ? 0 : plan.C / L);
      for (int64_t unit = begin; unit < end && !declined; ++unit)
        if (copies ? tile_unit(unit, tiles, states) : pixel_unit(unit, settings.data())) declined = true;
    } catch (const std::bad_alloc&) {
      declined = true;
    }
  }

  bool run() {
    const int64_t number = (scattered(plan) ? plan.groups : plan.N) * plan.bands;
    if (number == 0) return true;
    const bool worth_it = plan.N * plan.C * plan.folds[0].in >= SERIAL;
    parallel(number, worth_it, [](int64_t begin, int64_t end, void* context) { static_cast<Engine*>(context)->units(begin, end); }, this);
    return !declined;
  }
};

template <class T> bool run(const Plan& plan, const Call& call, bool back) {
  Engine<T> engine{plan, call, back};
  return engine.run();
}

int64_t size_of(int type) {
  switch (type) {
    case FLOAT64:
    case INT64:
      return 8;
    case FLOAT32:
    case INT32:
      return 4;
    case INT8:
    case UINT8:
      return 1;
    default:
      return 2;
  }
}
bool computes_in_float(int type) { return type != FLOAT64 && type != INT32 && type != INT64; }

}  // namespace

namespace {

struct Loops {
  bool (*suits)(const Plan&, bool);
  int64_t (*aux_bytes)(const Plan&, size_t);
  bool (*forward)(const Plan&, const Call&);
  bool (*backward)(const Plan&, const Call&);
};
#define EP_LOOPS(name) {name##_suits, name##_aux_bytes, name##_forward, name##_backward}
constexpr Loops SPECIAL[] = {{}, EP_LOOPS(rows), EP_LOOPS(globals), EP_LOOPS(scans), EP_LOOPS(strips), EP_LOOPS(pixels)};

int special_for(const Plan& plan, bool training) {
  for (int i = ROWS; i <= PIXELS; ++i)
    if (SPECIAL[i].suits(plan, training)) return i;
  return GENERAL;
}

}  // namespace

int64_t general_aux_bytes(const Plan& plan, size_t fold) {
  const Fold& f = plan.folds.at(fold);
  const int64_t lanes = scattered(plan) ? plan.groups * plan.lanes : plan.N * plan.C;
  if (plan.op == MEAN) return 0;
  if (plan.op == MAX) return lanes * f.out * (plan.wide_index ? 4 : 1);
  return lanes * f.out * 3 * (computes_in_float(plan.type) ? 4 : 8);
}

bool general_forward(const Plan& plan, const Call& call) {
  if (plan.too_large) return false;
  switch (plan.type) {
    case FLOAT32: return run<float>(plan, call, false);
    case FLOAT64: return run<double>(plan, call, false);
    case BFLOAT16: return run<bfloat16>(plan, call, false);
    case FLOAT16: return run<float16>(plan, call, false);
    case INT8: return run<int8_t>(plan, call, false);
    case UINT8: return run<uint8_t>(plan, call, false);
    case INT16: return run<int16_t>(plan, call, false);
    case INT32: return run<int32_t>(plan, call, false);
    default: return run<int64_t>(plan, call, false);
  }
}

bool general_backward(const Plan& plan, const Call& call) {
  if (plan.too_large) return false;
  switch (plan.type) {
    case FLOAT32: return run<float>(plan, call, true);
    case FLOAT64: return run<double>(plan, call, true);
    case BFLOAT16: return run<bfloat16>(plan, call, true);
    case FLOAT16: return run<float16>(plan, call, true);
    default: return false;
  }
}

int64_t aux_bytes(const Plan& plan, size_t fold) {
  return plan.special_training ? SPECIAL[plan.special_training].aux_bytes(plan, fold) : general_aux_bytes(plan, fold);
}

bool forward(const Plan& plan, const Call& call) {
  if (plan.N * plan.C == 0) return true;  // however many samples without channels there are
  for (size_t i = 0; i < plan.folds.size(); ++i) {
    fresh_memory(call.y[i], plan.N * plan.C * plan.folds[i].out * size_of(plan.type));
    if (call.aux[i]) fresh_memory(call.aux[i], aux_bytes(plan, i));
  }
  const int special = call.save || call.take ? plan.special_training : plan.special;
  return special ? SPECIAL[special].forward(plan, call) : general_forward(plan, call);
}

bool backward(const Plan& plan, const Call& call) {
  if (plan.N * plan.C == 0) return true;
  fresh_memory(call.dx, plan.N * plan.C * plan.folds[0].in * size_of(plan.type));
  return plan.special_training ? SPECIAL[plan.special_training].backward(plan, call) : general_backward(plan, call);
}

void stream(const void* from, int64_t read, void* to, int64_t written) {
  const char* p = static_cast<const char*>(from);
  vl sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * EP_BYTES <= read; i += 4 * EP_BYTES)
    for (int k = 0; k < 4; ++k) sum[k] ^= loadu<vl>(p + i + k * EP_BYTES);
  const vl value = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];  // what is written depends on all that was read
  char* q = static_cast<char*>(to);
  for (i = 0; i + EP_BYTES <= written; i += EP_BYTES) storeu(q + i, value);
}

// ---- plans ---------------------------------------------------------------------------------------------------------------

namespace {

[[noreturn]] void refuse(const char* why) { throw std::invalid_argument(why); }
void must(bool rule, const char* why) {
  if (!rule) refuse(why);
}
constexpr int64_t LARGEST = int64_t(1) << 46;
int64_t times(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_mul_overflow(a, b, &r) || r > LARGEST) refuse("sizes must be small enough to be counted");
  return r;
}

// One axis from its numbers: n, out, kind, step, kernel, stride, left, right, has_cells, middle, run, rows, and the addresses of
// what is listed: starts, counts and cells.
constexpr int AXIS_NUMBERS = 15;

void read_list(Axis& a, int64_t samples, const int64_t* start, const int64_t* count, const int64_t* extent) {
  must(a.rows == 1 || a.rows == samples, "an axis must have one row or N");
  must(!a.middle, "listed windows must have been cut to their middles");
  const int64_t entries = times(a.rows, a.out);
  must((start && count) || entries == 0, "an axis must have its tables");
  a.listed.resize(entries);
  a.has_cells = extent != nullptr;
  if (extent) a.extent.assign(extent, extent + entries);
  bool alike = a.rows == 1 && !a.run && a.step == 1 && (a.out > 1 || a.n == 1);  // do they slide?
  const int64_t stride = alike && a.out > 1 ? start[1] : 1, kernel = entries > 0 ? count[0] : 0;
  for (int64_t e = 0; e < entries; ++e) {
    const int64_t s = start[e], c = count[e];
    must(c >= 0 && c <= a.n, "windows must hold elements of their axis");
    if (c > 0) must(s >= 0 && s < a.n && (c - 1) <= (a.n - 1 - s) / a.step, "windows must lie within their axis");
    if (a.run && c > 0) must(a.run == 1 ? s == 0 && c == e % a.out + 1 : s == e % a.out && s + c <= a.n, "a run must be one");
    a.listed[e] = {c > 0 ? s : 0, c};
    a.most = std::max(a.most, c), a.may_be_empty = a.may_be_empty || c == 0;
    if (e > 0 && e < a.out) a.ordered = a.ordered && a.listed[e].start >= a.listed[e - 1].start;
    alike = alike && stride >= 1 && kernel >= 1 && c == kernel && s == e * stride && (!extent || extent[e] == c);
  }
  if (!alike) return;
  a.kind = SLIDING, a.stride = stride, a.kernel = a.all_kernel = kernel;
  a.listed = {}, a.extent = {};
}

void read_axis(Axis& a, const int64_t* number, int64_t samples) {
  for (int i : {2, 8, 9, 10}) must(number[i] >= 0 && number[i] < KINDS, "settings must exist");  // before they are narrowed
  a.n = number[0], a.out = number[1], a.kind = (int)number[2], a.step = number[3], a.kernel = number[4], a.stride = number[5];
  a.left = number[6], a.right = number[7], a.has_cells = number[8] != 0, a.middle = (int)number[9], a.run = (int)number[10];
  a.rows = number[11];
  must(a.n >= 1 && a.out >= 1 && a.step >= 1 && a.n <= LARGEST && a.out <= LARGEST && a.step <= LARGEST, "axes must have positive sizes");
  must(a.middle <= 2 && a.run <= 2, "settings must exist");
  must(!(a.run || a.kind == UP_TO || a.kind == FROM) || a.n == a.out, "a run must have a window per element");
  if (a.kind == LISTED)
    return read_list(a, samples, reinterpret_cast<const int64_t*>(number[12]), reinterpret_cast<const int64_t*>(number[13]),
                     reinterpret_cast<const int64_t*>(number[14]));
  must(a.rows == 1 && !a.run, "windows that are not listed must be alike for all samples");
  if (a.kind != SLIDING) {
    must(a.step == 1 && a.n < int64_t(1) << 31 && a.out < int64_t(1) << 31, "bins and runs must be small enough to be counted");
    a.has_cells = false;
    if (a.kind == BINS) {
      if (a.n == a.out || (a.out > 1 && a.n % a.out == 0)) a.kind = SLIDING, a.kernel = a.stride = a.n / a.out, a.left = 0;
    } else if (!a.middle) {
      a.run = a.kind == UP_TO ? 1 : 2;
    }
  }
  if (a.kind == SLIDING) {
    must(a.stride >= 1 && a.kernel >= 1 && a.stride <= LARGEST && a.kernel <= LARGEST && a.left >= -LARGEST && a.left <= LARGEST &&
             a.right >= -LARGEST && a.right <= LARGEST, "sliding windows must have sizes that can be counted");
    times(a.out - 1, a.stride), times(a.kernel - 1, a.step);
    a.all_kernel = a.kernel, a.all_left = a.left, a.all_step = a.step;
    if (a.middle) {  // where no middle is clipped, they slide
      const int64_t first = (a.kernel - 1 + (a.middle == 2)) / 2 * a.step - a.left;
      if (first >= 0 && (a.out - 1) * a.stride + first < a.n) a.kernel = a.step = 1, a.left = -first, a.middle = 0;
    }
    if (!a.middle) {  // taps that no window finds on the axis: what a fold costs does not follow the number given as kernel
      const int64_t before = std::clamp<int64_t>((a.left - (a.out - 1) * a.stride) / a.step, 0, a.kernel - 1);
      a.left -= before * a.step, a.kernel = std::clamp<int64_t>((a.n - 1 + a.left) / a.step + 1, 1, a.kernel - before);
      if (a.kernel == 1) a.step = 1;
    }
    a.may_be_empty = a.step > 1 || a.at(0, 0).count == 0 || a.at(a.out - 1, 0).count == 0;
  }
  a.most = a.middle ? 1 : a.kind == BINS ? most_in_bin(a.n, a.out) : a.kind != SLIDING ? a.n : 1;
  if (a.kind != SLIDING || a.middle) return;
  if (a.step > 1) {
    a.most = std::min(a.kernel, (a.n - 1) / a.step + 1);
  } else {  // the windows that the axis clips least
    for (int64_t o : {int64_t(0), a.left / a.stride, a.left / a.stride + 1, (a.n - a.kernel + a.left) / a.stride, a.out - 1})
      a.most = std::max(a.most, a.at(std::clamp<int64_t>(o, 0, a.out - 1), 0).count);
  }
}

// Bands: so few rows that a tile stays in cache, and so many that rows read twice do not matter; and no fewer than threads need.
int64_t bands_for(const Plan& plan, const Fold& f) {
  const Axis& a = f.axis[f.band_axis];
  if (plan.folds.size() > 1 || f.method != DIRECT || a.out == 1) return 1;
  if (plan.mask_channels > 0 && plan.op != MAX) return 1;  // a gradient counts all elements of windows that reach into it
  const int64_t bytes = plan.lanes * (computes_in_float(plan.type) ? 4 : 8);
  const int64_t row = below(f) * (scattered(plan) ? bytes : plan.C * bytes / plan.lanes);
  const int64_t whole = a.n * row;
  int64_t bands = whole / TILE_BYTES + 1;
  const int64_t overlap = a.slides() ? std::max<int64_t>(a.most - a.stride, 0) : 1;
  bands = std::min(bands, std::max<int64_t>(a.n / std::max<int64_t>(6 * overlap, 1), 1));
  return std::max<int64_t>(std::min(bands, a.out), 1);
}

}  // namespace

Plan make_plan(const std::vector<int64_t>& numbers, const std::vector<double>& reals) {
  size_t at = 0;
  const auto next = [&]() {
    must(at < numbers.size(), "a plan must have all its numbers");
    return numbers[at++];
  };
  const auto choice = [&]() {
    const int64_t value = next();
    must(value >= 0 && value < 256, "settings must exist");  // before it is narrowed
    return (int)value;
  };
  Plan p;
  p.N = next(), p.C = next(), p.type = choice(), p.pixels = next() != 0, p.op = choice(), p.index = choice();
  p.divisor = choice(), p.sign = choice(), p.last = next() != 0, p.sum = next() != 0, p.plain_gradient = next() != 0;
  p.mask_channels = next();
  const int64_t folds = next();
  must(p.N >= 0 && p.C >= 0 && p.N <= LARGEST && p.C <= LARGEST, "sizes must be small enough to be counted");
  must(p.type >= 0 && p.type < TYPES && p.op >= 0 && p.op < OPS && p.index >= 0 && p.index <= POSITION, "types and operations must exist");
  must(p.divisor >= 0 && p.divisor <= CELLS && p.sign >= 0 && p.sign <= ABS, "settings must exist");
  must(p.op == MAX || p.type < INT8, "integers must be pooled by their maximum");
  must(p.mask_channels == 0 || p.mask_channels == 1 || p.mask_channels == p.C, "a mask must have 1 or C channels");
  must(folds >= 1 && folds <= 64, "a plan must have 1 to 64 folds");
  must(reals.size() == 2, "a plan must have two real settings");
  p.eps = reals[0], p.fixed = reals[1];
  p.lanes = computes_in_float(p.type) ? LF : LD;
  p.per_sample = p.mask_channels > 0 || p.pixels;
  const int64_t planes = times(p.N, p.C);
  int64_t largest_taps = 1;
  bool numbered = true;  // 32 bits hold the number of every element
  bool separable = false;
  for (int64_t i = 0; i < folds; ++i) {
    Fold f;
    f.own_position = next() != 0;
    f.has_cells = true;
    f.method = (Method)(next() != 0);
    double taps = 1, work = 1;
    for (Axis& a : f.axis) {
      int64_t numbers_of_axis[AXIS_NUMBERS];
      for (int64_t& number : numbers_of_axis) number = next();
      read_axis(a, numbers_of_axis, p.N);
      p.per_sample = p.per_sample || a.rows > 1;
      f.has_cells = f.has_cells && a.has_cells;
      if (a.run) f.method = SEPARABLE;
      taps *= (double)a.most;
      work *= a.elements();
      f.in = times(f.in, a.n), f.out = times(f.out, a.out);
    }
    f.band_axis = f.axis[0].n > 1 || f.axis[0].out > 1 ? 0 : f.axis[1].n > 1 || f.axis[1].out > 1 ? 1 : 2;
    // element by element costs the product of the windows' extents, axis by axis their sum and copies of the states
    if (f.method == DIRECT && work > 24.0 * (double)(f.in + f.out)) f.method = SEPARABLE;
    must(i == 0 || f.in == p.folds[0].in, "all folds must be over one map");
    numbered = numbered && taps < 2e9 && f.in < (int64_t(1) << 31);
    must(!f.own_position || f.in == f.out, "windows must have places of their own");
    separable = separable || f.method == SEPARABLE;
    times(planes, f.in), times(planes, f.out);
    f.taps = (int64_t)std::min(taps, 2e9);
    largest_taps = std::max(largest_taps, f.taps);
    p.folds.push_back(std::move(f));
  }
  must(at == numbers.size(), "a plan must have no numbers too many");
  if (separable) {  // all folds of a plan keep the same kind of index, and pixels are then copied to tiles
    for (Fold& f : p.folds) {
      f.method = SEPARABLE;
      p.too_large = p.too_large || std::max((double)(f.in + f.out), most_states(f)) * 8.0 * 6.0 * LD >= (double)STATES;
    }
    p.wide_index = true;
  }
  p.wide_index = p.wide_index || largest_taps > 256;
  p.always_tile = separable || p.index == POSITION;
  const int64_t L = p.lanes;
  p.groups = p.per_sample ? p.N * ((p.C + L - 1) / L) : (planes + L - 1) / L;
  p.bands = bands_for(p, p.folds[0]);
  if (planes > 0) p.special = special_for(p, false), p.special_training = special_for(p, true);  // tables may have no rows
  must(!p.too_large || (p.special && p.special_training), "a plane must fit the memory of its states");
  must(numbered || (p.special == GLOBALS && p.type >= INT8), "windows must be small enough to be numbered");
  p.too_large = p.too_large || !numbered;
  if (p.special_training) p.bands = 1;  // slopes of the parameter come in one part
  return p;
}

}  // namespace everypool
