// Lines along several axes of one map: every element's gradient is added up from those of its lines, and written once.
#include "strips.h"

namespace everypool {
namespace {

// One element in all lanes.
EP_INLINE vf everywhere(const float* p) { return splat<vf>(*p); }
EP_INLINE vd everywhere(const double* p) { return splat<vd>(*p); }
template <class H> EP_INLINE vf everywhere(const H* p) { return from_bits(splat<vh>(p->bits), H{}); }

template <class T, bool MEAN, int LINES> class Backward {
  using C = Compute<T>;
  using V = typename Lane<C>::V;
  using M = typename Lane<C>::M;
  static constexpr int L = Lane<C>::L;

  static constexpr bool deep = LINES & DEEP, tall = LINES & TALL, flat = LINES & FLAT;

  struct Given {  // to the lines of one vector
    V g;
    M won;
    EP_INLINE V share(M number) const { return MEAN ? g : keep(g, (M)(won == number)); }  // of element `number`
  };

 public:
  Backward(const Plan& plan, const Map& map, const Call& call)
      : D(map.n[DEPTH]), H(map.n[HEIGHT]), W(map.n[WIDTH]), words_((W + L - 1) / L), dx_(static_cast<T*>(call.dx)) {
    for (int a = 0; a < 3; ++a) {
      if (map.fold[a] < 0) continue;
      g_[a] = static_cast<const T*>(call.grad[map.fold[a]]);
      won_[a] = static_cast<const int32_t*>(call.aux[map.fold[a]]);
      scale_[a] = scale(plan, map.n[a]);
    }
    tall_ = static_cast<Given*>(memory_.take((1 + (deep ? H : 0)) * words_ * (int64_t)sizeof(Given))), deep_ = tall_ + words_;
  }

  void plane(int64_t number) {
    T* dx = dx_ + number * D * H * W;
    for (int64_t h = 0; deep && h < H; ++h) read(DEPTH, (number * H + h) * W, deep_ + h * words_);
    for (int64_t d = 0; d < D; ++d) {
      if (tall) read(HEIGHT, (number * D + d) * W, tall_);
      for (int64_t h = 0; h < H; ++h, dx += W) row(dx, d, h, flat ? across((number * D + d) * H + h) : Given{});
    }
  }

 private:
  EP_INLINE void row(T* dx, int64_t d, int64_t h, const Given& all) const {
    for (int64_t k = 0; k < words_; ++k) {
      const int64_t at = std::min(k * L, W - L);
      V sum{};
      if (flat) sum = all.share(lane_numbers<M>() + splat<M>(at));
      if (tall) sum = sum + tall_[k].share(splat<M>(h));
      if (deep) sum = sum + deep_[h * words_ + k].share(splat<M>(d));
      store_as(dx + at, sum);
    }
  }
  V scaled(Along along, V g) const { return MEAN ? Lane<C>::narrow(Lane<C>::wide(g) * Lane<C>::all(scale_[along])) : g; }
  Given across(int64_t at) const {
    return {scaled(WIDTH, everywhere(g_[WIDTH] + at)), MEAN ? M{} : splat<M>(won_[WIDTH][at])};
  }
  void read(Along along, int64_t first, Given* to) const {
    using Numbers = typename Packed<int32_t, L>::type;
    for (int64_t k = 0; k < words_; ++k) {
      const int64_t at = first + std::min(k * L, W - L);
      to[k] = {scaled(along, load_as(g_[along] + at)), M{}};
      if constexpr (!MEAN) to[k].won = __builtin_convertvector(loadu<Numbers>(won_[along] + at), M);
    }
  }

  const int64_t D, H, W, words_;
  T* dx_;
  const T* g_[3] = {};
  const int32_t* won_[3] = {};
  double scale_[3] = {};
  Scratch memory_;
  Given *tall_, *deep_;  // one for each vector of a row; of every row
};

// The elements that have won.
template <class T> class Taken {
 public:
  Taken(const Map& map, const Call& call) : map_(map), call_(call) {}
  void plane(int64_t number) {
    for (int a = 0; a < 3; ++a)
      if (map_.fold[a] >= 0) lines(a, number);
  }

 private:
  void lines(int a, int64_t number) const {
    int64_t outer = 1, inner = 1;
    for (int b = 0; b < a; ++b) outer *= map_.n[b];
    for (int b = a + 1; b < 3; ++b) inner *= map_.n[b];
    const T* x = static_cast<const T*>(call_.x);
    T* y = static_cast<T*>(call_.y[map_.fold[a]]);
    const int32_t* won = static_cast<const int32_t*>(call_.aux[map_.fold[a]]);
    for (int64_t o = number * outer; o < (number + 1) * outer; ++o)
      for (int64_t j = 0; j < inner; ++j) y[o * inner + j] = x[(o * map_.n[a] + won[o * inner + j]) * inner + j];
  }

  const Map& map_;
  const Call& call_;
};

}  // namespace

bool strips_take(const Plan& plan, const Map& map, const Call& call) {
  return with_real(plan.type, [&](auto t) { return each_plane(map, [&](auto) { return Taken<decltype(t)>(map, call); }); });
}

bool strips_gradient(const Plan& plan, const Map& map, const Call& call) {
  return with_real(plan.type, [&](auto t) {
    using T = decltype(t);
    if (plan.op == MEAN) return each_plane(map, [&](auto lines) { return Backward<T, true, lines>(plan, map, call); });
    return each_plane(map, [&](auto lines) { return Backward<T, false, lines>(plan, map, call); });
  });
}

}  // namespace everypool
