// Windows folded axis by axis: large windows and running scans, at a cost that does not grow with the window.
#pragma once
#include "windows.h"

namespace everypool {

extern int poison;  // see set_poison

// scratch memory of one thread: grows as needed, and is given back when it was large
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  void* take(int64_t bytes);  // aligned to 64 bytes; what was taken before is gone

 private:
  void* memory_ = nullptr;
  int64_t size_ = 0;
};

// The most states of one plane that there are at a time, between two axes.
double most_states(const Fold&);

template <class C>
bool folds_forward(const Plan&, const Fold&, int64_t sample, const View<C>&, const Setting<C>&, bool save, Scratch&);
template <class C> bool folds_backward(const Plan&, const Fold&, int64_t sample, const View<C>&, const Setting<C>&, Scratch&);

}  // namespace everypool
