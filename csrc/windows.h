// Windows over one tile, element by element: sliding windows and bins of every kind, forward and backward.
#pragma once
#include "ops.h"
#include "plan.h"

namespace everypool {

// One tile of L lanes (or whole pixels of `groups` vectors) and where results go. Positions count from the plane's start.
template <class C> struct View {
  const C* x = nullptr;
  int64_t xs = 0, x0 = 0;          // elements from position to position; position of the first in the tile
  const void* mask = nullptr;      // all bits set where an element counts; laid out as a tile
  C* y = nullptr;                  // (backward: the gradient of y)
  int64_t ys = 0, y0 = 0;
  C* aux = nullptr;                // (component, window, lane)
  int64_t as = 0, component = 0;   // elements from window to window, from component to component
  bool take = false;               // give the elements that have won
  void* won = nullptr;             // number of the maximum's tap, laid out as one component of aux
  int64_t* const* position = nullptr;  // one plane per lane, for returned indices
  int64_t ps = 1;                  // from window to window of those
  int planes = 0;
  C* dx = nullptr;                 // laid out as x
  double* slope = nullptr;         // one per lane: gradient of the parameter
  int groups = 1;
  int64_t low = 0, high = 0;       // windows along the band axis
  int64_t from = 0, to = 0;        // backward: elements along the band axis that take part
};

// true: something was infinite, or beyond the range of the type
template <class C> bool windows_forward(const Plan&, const Fold&, int64_t sample, const View<C>&, const Setting<C>*, bool save, bool nans);
template <class C> void windows_backward(const Plan&, const Fold&, int64_t sample, const View<C>&, const Setting<C>*);

}  // namespace everypool
