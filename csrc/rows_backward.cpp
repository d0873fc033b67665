// Gradients of maxima of sliding windows along rows: every element looks which of its windows it has won.
#include "rows.h"

namespace everypool {
namespace {

constexpr int64_t GATHERED_TAPS = 9;   // of windows that overlap: where there are more, every window looks for its element
constexpr int MOST_ROWS = 16;          // rows of windows that hold an element
constexpr int64_t GATHER_TILE = 16 << 10;

// S vectors side by side: lane 0 of each, lane 1 of each, ...
template <int S, int I, int... L> EP_INLINE vf interleaved(const vf* v, std::integer_sequence<int, L...>) {
  const auto element = [](int lane) { return I * LF + lane; };
  const vf two = __builtin_shufflevector(v[0], v[1], (element(L) / S + (element(L) % S == 1 ? LF : 0))...);
  return __builtin_shufflevector(two, v[2], (element(L) % S == 2 ? LF + element(L) / S : L)...);
}
template <int S> EP_INLINE void interleave_all(vf* v) {
  if constexpr (S == 2) {
    interleave(v[0], v[1]);
  } else if constexpr (S == 3) {
    constexpr auto lanes = std::make_integer_sequence<int, LF>{};
    const vf a = interleaved<3, 0>(v, lanes), b = interleaved<3, 1>(v, lanes), c = interleaved<3, 2>(v, lanes);
    v[0] = a, v[1] = b, v[2] = c;
  } else if constexpr (S == 4) {
    interleave(v[0], v[2]), interleave(v[1], v[3]);
    interleave(v[0], v[1]), interleave(v[2], v[3]);
  }
}

// What every way of going back knows.
template <class T> struct Back {
  const Grid& g;
  const Units& units;
  const T *grad, *grad_end;
  const uint8_t *won, *won_end;
  T* dx;
  T* end = nullptr;  // elements before it are this thread's

  Back(const Grid& grid, const Call& call, const Units& u)
      : g(grid), units(u), grad(static_cast<const T*>(call.grad[0])), grad_end(grad + g.planes * g.out),
        won(static_cast<const uint8_t*>(call.aux[0])), won_end(won + g.planes * g.out), dx(static_cast<T*>(call.dx)) {}

  // f(slice and row of windows, number of the tap that an element of that row would be were it the first of its row)
  template <class F> EP_INLINE void windows_of(int64_t z, int64_t r, const F& f) const {
    for (int64_t d = g.d.low(z); d < g.d.high(z); ++d)
      for (int64_t h = g.h.low(r); h < g.h.high(r); ++h)
        f(d, h, (int32_t)(((z - g.d.begin(d)) * g.h.kernel + r - g.h.begin(h)) * g.w.kernel));
  }
  // what follows the row is written later, up to where other threads write
  template <int S> EP_INLINE void store(T* to, const vf* v, const T* row_end) const {
    if (end - to >= S * LF)
      for (int i = 0; i < S; ++i) store_as(to + i * LF, v[i]);
    else
      for (int i = 0; i < S; ++i) store_until(to + i * LF, v[i], row_end);
  }
};

// Windows of S columns side by side: every element is in one window of a row of windows.
template <class T> class Groups : Back<T> {
  using Back<T>::g;

 public:
  using Back<T>::Back;
  static bool suits(const Grid& g) {
    const int64_t deep = (g.d.kernel + g.d.stride - 1) / g.d.stride, high = (g.h.kernel + g.h.stride - 1) / g.h.stride;
    return g.w.kernel == g.w.stride && g.w.stride >= 2 && g.w.stride <= 4 && g.w.left == 0 && deep * high <= MOST_ROWS;
  }
  void run(int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t slice = this->units.plane(unit), low = this->units.low(unit), high = this->units.high(unit);
      T* to = this->dx + slice * g.h.n * g.w.n;
      this->end = this->units.parts == 1 ? this->dx + end * g.h.n * g.w.n : to + high * g.w.n;
      with_constant<2, 3>(g.w.stride, [&](auto S) {
        for (int64_t r = low; r < high; ++r) row<S == 0 ? 4 : S>(slice, r, to + r * g.w.n);
      });
    }
  }

 private:
  template <int S> void row(int64_t slice, int64_t r, T* to) const {
    const T* grads[MOST_ROWS];
    const uint8_t* taps[MOST_ROWS];
    int32_t numbers[MOST_ROWS];
    int m = 0;
    const int64_t plane = slice / g.d.n * g.out;
    this->windows_of(slice % g.d.n, r, [&](int64_t d, int64_t h, int32_t number) {
      const int64_t at = plane + (d * g.h.out + h) * g.w.out;
      grads[m] = this->grad + at, taps[m] = this->won + at, numbers[m++] = number;
    });
    if (m == 0) {
      std::fill_n(to, g.w.n, T{});
      return;
    }
    const int64_t out = g.w.out;
    const bool room = this->won_end - taps[m - 1] >= round_up(out, LF);
    with_constant<1, 2>(m, [&](auto M) {
      const Pointers<M, const T*> grad(grads, m);
      const Pointers<M, const uint8_t*> tap(taps, m);
      const Pointers<M, int32_t> number(numbers, m);
      const auto step = [&](int64_t o, const auto& values, const auto& bytes) __attribute__((always_inline)) {
        vf v[S] = {};
#pragma GCC unroll 2
        for (int i = 0; i < grad.size; ++i) {
          const vf x = values(grad[i] + o);
          const vi won = bytes(tap[i] + o);
          for (int t = 0; t < S; ++t) v[t] += keep(x, (vi)(won == number[i] + t));
        }
        interleave_all<S>(v);
        this->template store<S>(to + S * o, v, to + g.w.n);
      };
      const auto whole = [&](int64_t o) __attribute__((always_inline)) {
        step(o, [](const T* p) { return load_as(p); }, [](const uint8_t* p) { return from_bytes(p); });
      };
      int64_t o = 0;
      for (; o + LF <= out; o += LF) whole(o);
      if (o < out && room)
        whole(o);
      else if (o < out)
        step(o, [&](const T* p) { return load_part(p, out - o); }, [&](const uint8_t* p) { return from_bytes(p, out - o); });
    });
    for (int64_t c = S * out; c < g.w.n; ++c) to[c] = T{};
  }
};

// Rows of windows in a tile, 0 around them, from which every element takes what it has won.
template <class T> class Gather : Back<T> {
  using Back<T>::g;

 public:
  Gather(const Grid& grid, const Call& call, const Units& units) : Back<T>(grid, call, units) {
    const Line &d = g.d, &h = g.h, &w = g.w;
    columns_ = (w.n + w.stride - 1) / w.stride;
    shift_ = (w.left + w.stride - 1) / w.stride;
    before_ = std::max<int64_t>((w.kernel - 1 + shift_ * w.stride - w.left) / w.stride - shift_, 0);
    pitch_ = w.out + std::max({before_, columns_ + shift_ - w.out, int64_t(0)});
    const int64_t deep = (d.kernel + d.stride - 1) / d.stride, row = pitch_ * 8;
    const int64_t rows = std::max<int64_t>(GATHER_TILE / row / deep, 1);  // of windows
    lines_ = std::min(std::max<int64_t>((rows - (h.kernel + h.stride - 1) / h.stride) * h.stride, h.stride), h.n);
    slices_ = d.n == 1 && d.out == 1 && lines_ == h.n && rows >= h.out ? rows / h.out : 1;
    const int64_t most = slices_ > 1 ? slices_ * h.out : std::min((lines_ + h.kernel - 2) / h.stride + 2, h.out) * deep;
    lead_ = round_up(before_, LF);
    size_ = round_up(lead_ + most * pitch_ + shift_ + 3 * LF, LF);
  }
  static bool suits(const Grid& g) {
    const int64_t deep = (g.d.kernel + g.d.stride - 1) / g.d.stride, high = (g.h.kernel + g.h.stride - 1) / g.h.stride;
    return g.w.stride <= 2 && (g.w.kernel == 2 || g.w.kernel == 3) && deep * high <= MOST_ROWS &&
           g.d.kernel * g.h.kernel * g.w.kernel <= GATHERED_TAPS;
  }
  void run(int64_t begin, int64_t end) {
    grads_ = static_cast<float*>(memory_.take(size_ * 8));
    taps_ = reinterpret_cast<int32_t*>(grads_ + size_);
    for (int64_t unit = begin, next; unit < end; unit = next) {
      const int64_t slice = this->units.plane(unit), low = this->units.low(unit), high = this->units.high(unit);
      next = this->units.parts == 1 ? std::min(unit + slices_, end) : unit + 1;
      this->end = this->dx + (this->units.parts == 1 ? end * g.h.n : slice * g.h.n + high) * g.w.n;
      for (int64_t r = low; r < high; r += lines_) tile(slice, next - unit, r, std::min(r + lines_, high));
    }
  }

 private:
  int64_t columns_, shift_, before_, pitch_, lines_, slices_, lead_, size_;
  Scratch memory_;
  float* grads_ = nullptr;
  int32_t* taps_ = nullptr;

  // elements of rows low to high of `slices` slices
  void tile(int64_t slice, int64_t slices, int64_t low, int64_t high) {
    const int64_t z = slice % g.d.n, d = g.d.low(z);
    const int64_t first = slices > 1 ? 0 : g.h.low(low), rows = slices > 1 ? g.h.out : g.h.high(high - 1) - first;
    const int64_t at = slice / g.d.n * g.out + (d * g.h.out + first) * g.w.out;
    for (int64_t j = lead_; j > 0; j -= LF) storeu(grads_ + lead_ - j, vf{});
    for (int64_t i = d; i < g.d.high(z); ++i) fill(at + (i - d) * g.h.out * g.w.out, slices * rows, lead_ + (i - d) * rows * pitch_);
    const int64_t start = lead_ - first * pitch_ - d * rows * pitch_;
    for (int64_t i = 0; i < slices; ++i)
      with_shape([&](auto S, auto K, auto skew) {
        T* to = this->dx + (slice + i) * g.h.n * g.w.n;
        for (int64_t r = low; r < high; ++r) row<S, K, skew>(z, r, start + i * rows * pitch_, rows * pitch_, to + r * g.w.n);
      });
  }
  // the tile's first window is `skew` columns to the right of a multiple of the stride
  template <class F> EP_INLINE void with_shape(const F& f) const {
    const bool skew = g.w.left % g.w.stride != 0;
    with_constant<2>(g.w.kernel, [&](auto two) {
      using K = std::integral_constant<int, two == 2 ? 2 : 3>;
      if (g.w.stride == 1)
        f(std::integral_constant<int, 1>{}, K{}, std::integral_constant<int, 0>{});
      else if (skew)
        f(std::integral_constant<int, 2>{}, K{}, std::integral_constant<int, 1>{});
      else
        f(std::integral_constant<int, 2>{}, K{}, std::integral_constant<int, 0>{});
    });
  }
  void fill(int64_t from, int64_t rows, int64_t to) {
    const int64_t out = g.w.out, room = this->grad_end - this->grad - from - round_up(out, LF);
    const int64_t full = room < 0 ? 0 : std::min(rows, room / out + 1);
    for (int64_t r = 0; r < rows; ++r, from += out, to += pitch_) {
      const T* grad = this->grad + from;
      const uint8_t* won = this->won + from;
      if (r < full) {
        for (int64_t o = 0; o < out; o += LF) storeu(grads_ + to + o, load_as(grad + o)), storeu(taps_ + to + o, from_bytes(won + o));
      } else {
        for (int64_t o = 0; o < out; o += LF) {
          const int64_t number = std::min<int64_t>(out - o, LF);
          storeu(grads_ + to + o, load_part(grad + o, number)), storeu(taps_ + to + o, from_bytes(won + o, number));
        }
      }
      for (int64_t j = out; j < pitch_; j += LF) storeu(grads_ + to + j, vf{});
    }
  }
  // element q * S + p is tap t of window q - (t + skew) / S + shift where (t + skew) % S is p
  template <int S, int K, int SKEW> EP_INLINE void row(int64_t z, int64_t r, int64_t start, int64_t deep, T* to) const {
    int64_t starts[MOST_ROWS];
    int32_t numbers[MOST_ROWS];
    int m = 0;
    this->windows_of(z, r, [&](int64_t d, int64_t h, int32_t number) {
      starts[m] = start + d * deep + h * pitch_ + shift_, numbers[m++] = number;
    });
    if (m == 0) {
      std::fill_n(to, g.w.n, T{});
      return;
    }
    with_constant<1, 2, 3>(m, [&](auto M) __attribute__((always_inline)) {
      const Pointers<M, int64_t> at(starts, m);
      const Pointers<M, int32_t> number(numbers, m);
      for (int64_t q = 0; q < columns_; q += LF) {
        vf v[S] = {};
#pragma GCC unroll 3
        for (int i = 0; i < at.size; ++i)
#pragma GCC unroll 3
          for (int t = 0; t < K; ++t) {
            const int64_t j = at[i] + q - (t + SKEW) / S;
            v[(t + SKEW) % S] += keep(loadu<vf>(grads_ + j), (vi)(loadu<vi>(taps_ + j) == number[i] + t));
          }
        interleave_all<S>(v);
        this->template store<S>(to + S * q, v, to + g.w.n);
      }
    });
  }
};

// One window after the other, each to the element that has won it.
template <class T> class Scatter : Back<T> {
  using Back<T>::g;

 public:
  Scatter(const Grid& grid, const Call& call, const Units& units) : Back<T>(grid, call, units), offset_(g.d.kernel * g.h.kernel * g.w.kernel) {
    for (int64_t t = 0; t < (int64_t)offset_.size(); ++t)
      offset_[t] = (t / g.w.kernel / g.h.kernel * g.h.n + t / g.w.kernel % g.h.kernel) * g.w.n + t % g.w.kernel;
    if (!std::is_same_v<T, float>) sums_.resize(g.in);
  }
  void run(int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) {
      T* dx = this->dx + plane * g.in;
      float* sums = sums_.data();
      if constexpr (std::is_same_v<T, float>) sums = dx;
      std::fill_n(sums, g.in, 0.0f);
      int64_t at = plane * g.out;
      for (int64_t d = 0; d < g.d.out; ++d)
        for (int64_t h = 0; h < g.h.out; ++h, at += g.w.out)
          row(at, (g.d.begin(d) * g.h.n + g.h.begin(h)) * g.w.n - g.w.left, sums);
      if constexpr (!std::is_same_v<T, float>)
        for (int64_t j = 0; j < g.in; j += LF) store_until(dx + j, load_until(sums + j, sums + g.in), dx + g.in);
    }
  }

 private:
  std::vector<int64_t> offset_;  // of a tap from the window's first element
  std::vector<float> sums_;

  void row(int64_t at, int64_t first, float* sums) const {
    float values[LF];
    for (int64_t o = 0; o < g.w.out; o += LF) {
      const int64_t number = std::min<int64_t>(LF, g.w.out - o);
      storeu(values, load_until(this->grad + at + o, this->grad + at + g.w.out));
      for (int64_t i = 0; i < number; ++i) sums[first + (o + i) * g.w.stride + offset_[this->won[at + o + i]]] += values[i];
    }
  }
};

template <class Way> bool back(const Grid& g, const Call& call, const Units& units) {
  return in_parallel(units.number, g.planes * g.in >= SERIAL, [&](int64_t begin, int64_t end) { Way(g, call, units).run(begin, end); });
}

}  // namespace

bool rows_winners_gradient(const Plan& plan, const Grid& g, const Call& call) {
  return with_type(plan.type, [&](auto type) {
    using T = decltype(type);
    const Units rows(g.planes * g.d.n, g.h.n, g.w.n);
    if (Groups<T>::suits(g)) return back<Groups<T>>(g, call, rows);
    if (Gather<T>::suits(g)) return back<Gather<T>>(g, call, rows);
    return back<Scatter<T>>(g, call, Units(g.planes, 1, 1));
  });
}

}  // namespace everypool
