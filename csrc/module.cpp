// The Python module: addresses and numbers in, nothing else. Built on the limited API, one binary for every Python from 3.10 on.
#define Py_LIMITED_API 0x030A0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <new>
#include <stdexcept>

#include "corners.h"
#include "vec.h"

#ifndef EP_MODULE
#error "EP_MODULE must name the module, such as _cpu_avx2"
#endif
#define EP_TEXT_(x) #x
#define EP_TEXT(x) EP_TEXT_(x)
#define EP_INIT_(x) PyInit_##x
#define EP_INIT(x) EP_INIT_(x)

using namespace everypool;

namespace {

constexpr const char* PLAN = "everypool.plan";
constexpr int64_t ALONE = 20000;  // elements from which other Python threads may run meanwhile

template <class F> PyObject* guarded(F f) {
  try {
    return f();
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

bool to_int(PyObject* object, int64_t& value) {
  value = PyLong_AsLongLong(object);
  return !(value == -1 && PyErr_Occurred());
}

bool to_ints(PyObject* const* args, int number, int64_t* values) {
  for (int i = 0; i < number; ++i)
    if (!to_int(args[i], values[i])) return false;
  return true;
}

// f() as a bool of Python's, while other Python threads run if it has so many elements to do
template <class F> PyObject* answered(int64_t elements, const F& f) {
  return guarded([&]() -> PyObject* {
    PyThreadState* state = elements > ALONE ? PyEval_SaveThread() : nullptr;
    bool done = false;
    try {
      done = f();
    } catch (...) {
      if (state) PyEval_RestoreThread(state);
      throw;
    }
    if (state) PyEval_RestoreThread(state);
    return PyBool_FromLong(done);
  });
}

Plan* plan_of(PyObject* object) { return static_cast<Plan*>(PyCapsule_GetPointer(object, PLAN)); }

PyObject* new_plan(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2 || !PyTuple_Check(args[0]) || !PyTuple_Check(args[1])) {
    PyErr_SetString(PyExc_TypeError, "plan(numbers, reals) takes two tuples");
    return nullptr;
  }
  return guarded([&]() -> PyObject* {
    std::vector<int64_t> numbers(PyTuple_Size(args[0]));
    std::vector<double> reals(PyTuple_Size(args[1]));
    for (size_t i = 0; i < numbers.size(); ++i)
      if (!to_int(PyTuple_GetItem(args[0], i), numbers[i])) return nullptr;
    for (size_t i = 0; i < reals.size(); ++i) {
      reals[i] = PyFloat_AsDouble(PyTuple_GetItem(args[1], i));
      if (reals[i] == -1 && PyErr_Occurred()) return nullptr;
    }
    Plan* plan = new Plan(make_plan(numbers, reals));
    PyObject* capsule = PyCapsule_New(plan, PLAN, [](PyObject* object) { delete plan_of(object); });
    if (!capsule) delete plan;
    return capsule;
  });
}

// (bytes of aux per fold..., bands, whether it is folded axis by axis, bytes that the plan itself keeps)
PyObject* describe(PyObject*, PyObject* object) {
  Plan* plan = plan_of(object);
  if (!plan) return nullptr;
  return guarded([&]() -> PyObject* {
    PyObject* sizes = PyTuple_New(plan->folds.size());
    if (!sizes) return nullptr;
    for (size_t i = 0; i < plan->folds.size(); ++i) PyTuple_SetItem(sizes, i, PyLong_FromLongLong(aux_bytes(*plan, i)));
    return Py_BuildValue("NLiL", sizes, (long long)plan->bands, (int)plan->folds[0].method, (long long)plan->bytes());
  });
}

PyObject* run(PyObject* const* args, Py_ssize_t count, bool back) {
  constexpr Py_ssize_t fixed = 7;
  Plan* plan = count > 0 ? plan_of(args[0]) : nullptr;
  if (!plan) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "the first argument must be a plan");
    return nullptr;
  }
  const Py_ssize_t folds = plan->folds.size();
  if (count != fixed + 3 * folds) {
    PyErr_Format(PyExc_TypeError, "%zd addresses must be given, got %zd", fixed + 3 * folds, count);
    return nullptr;
  }
  int64_t v[fixed];
  if (!to_ints(args + 1, fixed - 1, v + 1)) return nullptr;
  Call call;
  call.x = reinterpret_cast<const void*>(v[1]);
  call.mask = reinterpret_cast<const uint8_t*>(v[2]);
  call.parameter = reinterpret_cast<const double*>(v[3]);
  call.parameters = v[4];
  call.save = v[5] == 1 && !back;
  call.take = v[5] == 2 && !back;
  if (back) {
    call.dx = reinterpret_cast<void*>(v[5]);
    call.dparameter = reinterpret_cast<double*>(v[6]);
  }
  bool given = call.x != nullptr || plan->N * plan->C == 0;
  given = given && (plan->mask_channels == 0 || call.mask) && (!call.parameter || call.parameters == 1 || call.parameters == plan->C);
  given = given && (plan->op == MAX || plan->op == MEAN || call.parameter) && (!back || call.dx || plan->N * plan->C == 0);
  for (Py_ssize_t i = 0; i < folds; ++i) {
    int64_t p[3];
    if (!to_ints(args + fixed + 3 * i, 3, p)) return nullptr;
    (back ? call.grad : call.y).push_back(reinterpret_cast<void*>(p[0]));
    call.aux.push_back(reinterpret_cast<void*>(p[1]));
    call.index.push_back(reinterpret_cast<void*>(p[2]));
    const bool kept = plan->op == MEAN || p[1];
    given = given && (p[0] || plan->N * plan->C == 0) && (!back || kept) && ((!call.save && !call.take) || kept);
    given = given && (!call.take || plan->op == MAX);
  }
  if (!given) {
    PyErr_SetString(PyExc_ValueError, "every address that the plan needs must be given");
    return nullptr;
  }
  poison_stack();
  return answered(plan->N * plan->C * plan->folds[0].in, [&] { return back ? backward(*plan, call) : forward(*plan, call); });
}

// forward(plan, x, mask, parameter, parameters, what, 0, y, aux, index, ...), what: 0 pool, 1 keep aux, 2 take what won: False where the definition itself is needed
PyObject* run_forward(PyObject*, PyObject* const* args, Py_ssize_t count) { return run(args, count, false); }
// backward(plan, x, mask, parameter, parameters, dx, dparameter, grad, aux, 0, ...)
PyObject* run_backward(PyObject*, PyObject* const* args, Py_ssize_t count) { return run(args, count, true); }

// corner(plan, plan, what, x, other, y, second, aux), what: 0 pool, 1 keep aux, 2 take what won, 3 gradient: of x, into y and second
PyObject* run_corner(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 8) {
    PyErr_SetString(PyExc_TypeError, "corner takes two plans and six ints");
    return nullptr;
  }
  const Plan *a = plan_of(args[0]), *b = plan_of(args[1]);
  if (!a || !b) return nullptr;
  int64_t v[6];
  if (!to_ints(args + 2, 6, v)) return nullptr;
  CornerCall call;
  call.save = v[0] == 1, call.take = v[0] == 2, call.back = v[0] == 3;
  call.x[0] = reinterpret_cast<const void*>(v[1]), call.x[1] = reinterpret_cast<const void*>(v[2]);
  call.y[0] = reinterpret_cast<void*>(v[3]), call.y[1] = reinterpret_cast<void*>(v[4]);
  call.aux = v[0] ? reinterpret_cast<uint8_t*>(v[5]) : nullptr;
  const bool given = call.x[0] && call.y[0] && (call.back ? call.y[1] != nullptr : call.x[1] != nullptr) && (v[0] == 0 || call.aux);
  if (v[0] < 0 || v[0] > 3 || !given) {
    PyErr_SetString(PyExc_ValueError, "every address that a corner needs must be given");
    return nullptr;
  }
  poison_stack();
  return answered(a->N * a->C * a->folds[0].in, [&] { return corners_run(*a, *b, call); });
}

// bytes to keep for the gradient of a corner of two plans; -1 where they are none
PyObject* corner_bytes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  const Plan* a = count == 2 ? plan_of(args[0]) : nullptr;
  const Plan* b = a ? plan_of(args[1]) : nullptr;
  if (b) return PyLong_FromLongLong(corners_aux_bytes(*a, *b));
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "corner_bytes takes two plans");
  return nullptr;
}

// cross(type, planes, high, wide, columns, rows, y)
PyObject* run_cross(PyObject*, PyObject* const* args, Py_ssize_t count) {
  int64_t v[7];
  if (count != 7) {
    PyErr_SetString(PyExc_TypeError, "cross takes seven ints");
    return nullptr;
  }
  if (!to_ints(args, 7, v)) return nullptr;
  int64_t size = 0;
  bool fits = v[0] >= 0 && v[0] < INT8 && v[1] > 0 && v[2] > 0 && v[3] > 0 && v[4] && v[5] && v[6];
  fits = fits && !__builtin_mul_overflow(v[1], v[2], &size) && !__builtin_mul_overflow(size, v[3], &size) && size < int64_t(1) << 46;
  if (!fits) {
    PyErr_SetString(PyExc_ValueError, "a cross must be of floating point, with sizes and every address");
    return nullptr;
  }
  const auto at = [&](int i) { return reinterpret_cast<void*>(v[i]); };
  return answered(size, [&] { return cross_sum((int)v[0], v[1], v[2], v[3], at(4), at(5), at(6)); });
}

PyObject* run_stream(PyObject*, PyObject* const* args, Py_ssize_t count) {
  int64_t v[4];
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "stream(from, bytes, to, bytes) takes four ints");
    return nullptr;
  }
  if (!to_ints(args, 4, v)) return nullptr;
  stream(reinterpret_cast<const void*>(v[0]), v[1], reinterpret_cast<void*>(v[2]), v[3]);
  Py_RETURN_NONE;
}

// fill what calls have for scratch and stack with a byte before they use it; -1: leave it as it is
PyObject* poison(PyObject*, PyObject* object) {
  int64_t byte;
  if (!to_int(object, byte)) return nullptr;
  if (byte < -1 || byte > 255) {
    PyErr_SetString(PyExc_ValueError, "poison takes a byte, or -1 for none");
    return nullptr;
  }
  set_poison((int)byte);
  Py_RETURN_NONE;
}

PyObject* use_threads(PyObject*, PyObject* object) {
  int64_t address;
  if (!to_int(object, address)) return nullptr;
  set_parallel_for(reinterpret_cast<ParallelFor>(address));
  Py_RETURN_NONE;
}

// which instruction sets this machine has
PyObject* supports(PyObject*, PyObject* name) {
  const char* text = PyUnicode_AsUTF8AndSize(name, nullptr);
  if (!text) return nullptr;
  bool found = std::strcmp(text, "baseline") == 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (std::strcmp(text, "avx2") == 0)
    found = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(text, "avx512") == 0)
    found = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("f16c");
#endif
  return PyBool_FromLong(found);
}

template <class F> PyCFunction function(F f) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(f)); }

PyMethodDef methods[] = {
    {"plan", function(new_plan), METH_FASTCALL, "A plan from its numbers; ValueError for one that no kernel may be given."},
    {"describe", describe, METH_O, "(bytes to keep per fold, bands, method, bytes of the plan) of a plan."},
    {"forward", function(run_forward), METH_FASTCALL, "Pool; False where the definition itself is needed."},
    {"backward", function(run_backward), METH_FASTCALL, "The gradient; False where the definition itself is needed."},
    {"corner", function(run_corner), METH_FASTCALL, "Two running maxima, added, or their gradient; False where memory was short."},
    {"corner_bytes", function(corner_bytes), METH_FASTCALL, "Bytes to keep for a corner's gradient; -1: the plans make none."},
    {"cross", function(run_cross), METH_FASTCALL, "The sum of a value per column and one per row."},
    {"stream", function(run_stream), METH_FASTCALL, "Read and write so many bytes: the floor of any pooling."},
    {"supports", supports, METH_O, "Whether this machine has an instruction set."},
    {"poison", poison, METH_O, "A byte with which scratch and stack are filled before they are used, for tests; -1 for none."},
    {"use_threads", use_threads, METH_O, "Address of the function that runs a loop on torch's threads; 0 for none."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef definition = {PyModuleDef_HEAD_INIT, EP_TEXT(EP_MODULE), "everypool's compiled loops.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC EP_INIT(EP_MODULE)(void) {
  PyObject* module = PyModule_Create(&definition);
  if (module) PyModule_AddIntConstant(module, "VECTOR_BYTES", EP_BYTES);
  return module;
}
