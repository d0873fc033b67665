// Running maxima along one axis: which plans these loops do, and which loop does what.
#include "scans.h"

#include "special.h"

namespace everypool {
namespace {

bool course_of(const Plan& plan, Course& course) {
  if (plan.folds.size() != 1) return false;
  course.outer = plan.N * (plan.pixels ? 1 : plan.C);
  bool found = false;
  for (const Axis& a : plan.folds[0].axis) {
    if (a.kept()) {
      (found ? course.inner : course.outer) *= a.n;
    } else {
      if (found || !a.run || a.kind == LISTED) return false;
      course.n = a.n, course.backwards = a.run == 2;
      found = true;
    }
  }
  if (plan.pixels) course.inner *= plan.C;
  return found;
}

Course course_of(const Plan& plan) {
  Course course;
  course_of(plan, course);
  return course;
}

bool run(const Plan& plan, const Call& call, Pass pass) {
  const Course course = course_of(plan);
  return course.inner == 1 ? lines_run(plan, course, call, pass) : columns_run(plan, course, call, pass);
}

}  // namespace

bool scan_of(const Plan& plan, Course& course) {
  return plan.special == SCANS && plan.special_training == SCANS && course_of(plan, course);
}

bool scans_suits(const Plan& plan, bool) {
  Course course;
  if (plan.op != MAX || plan.index != NO_INDEX || plan.mask_channels > 0 || plan.type >= INT8 || !course_of(plan, course)) return false;
  return (course.inner == 1 ? course.n : course.inner) >= plan.lanes;
}

int64_t scans_aux_bytes(const Plan& plan, size_t) {
  const Course course = course_of(plan);
  return course.inner == 1 ? lines_aux_bytes(plan.type, course) : columns_aux_bytes(plan.type, course);
}

bool scans_forward(const Plan& plan, const Call& call) { return run(plan, call, call.take ? TAKE : call.save ? WINNERS : VALUES); }
bool scans_backward(const Plan& plan, const Call& call) { return run(plan, call, GRADIENT); }

}  // namespace everypool
