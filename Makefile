# `make compare` and `make test` set up all that they need in .venv, from pinned versions.
PYTHON ?= python3
ARGS ?=
COMMA := ,

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BASE := $(VENV)/base.stamp
CLI := $(VENV)/cli.stamp
DATA := $(VENV)/data.stamp
ALL := $(VENV)/all.stamp

# What is built for work here; a wheel has all. Of the AVX-512 loops lint sees to it that they would compile.
SETS ?= $(or $(EVERYPOOL_BUILD),$(if $(filter x86_64,$(shell uname -m)),baseline$(COMMA)avx2,baseline))
AVX512 := -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mf16c
# One instruction set is enough, and two would take twice as long to build: avx2 is what most machines run.
ISA ?= $(if $(filter x86_64,$(shell uname -m)),avx2,baseline)
SANITIZED := build/sanitized
WATCHED := build/watched
# -fno-wrapv: Python's own flags may say that integers wrap around, and no overflow would be found.
# What checks each access is called, not copied into the loops, and null pointers, which crash anyway, are not looked for:
# two thirds of the time to build.
SANITIZERS := -O1 -g1 -fno-wrapv -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-sanitize=null \
	--param=asan-instrumentation-with-call-threshold=0
# libstdc++ too: a sanitizer that comes before it does not find the function behind `throw`
PRELOAD = $(foreach name,asan ubsan stdc++,$(shell g++ -print-file-name=lib$(name).so))
# Python takes all its memory from malloc, so that every array has its own; what is too large is refused, not an error.
SANITIZER_ENV = LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	PYTHONMALLOC=malloc PYTHONPATH=$(SANITIZED)/lib EVERYPOOL_ISA=$(ISA)
# tests of pages, pictures and the comparison add nothing to what the loops are given
UNSANITIZED := article compare docs show

.PHONY: help compare claims test test-slow sanitize valgrind fuzz lint docs bench bench-gpu wheel clean

help:
	@echo "make compare   compare poolings on real digits; writes report.html (ARGS=... goes to everypool compare)"
	@echo "make claims    put the claims of the source article to the test; writes claims.html (ARGS=--quick for a first look)"
	@echo "make test      run all tests but the slow ones (ARGS=... goes to pytest)"
	@echo "make test-slow run the tests that compile and export everything (ARGS=... likewise)"
	@echo "make sanitize  build the compiled loops with address and undefined-behaviour sanitizers and run their tests (ARGS=... goes to pytest)"
	@echo "make valgrind  run the compiled loops on thousands of plans under valgrind (ARGS=... goes to tests/fuzz_loops.py)"
	@echo "make fuzz      give the compiled loops a million hostile plans (ARGS=... goes to tests/fuzz_loops.py)"
	@echo "make lint      formatting, lint rules, types and bans"
	@echo "make docs      build the documentation in docs/_build/html"
	@echo "make bench     time every operation (ARGS=... goes to the benchmark)"
	@echo "make bench-gpu time the fused kernels on a GPU; needs torch, Triton and numpy in PYTHON, installs nothing (ARGS=... likewise)"
	@echo "make wheel     build a wheel in dist"
	@echo "make clean     remove the environment and everything that was built"

compare: $(CLI)
	$(BIN)/everypool compare $(ARGS)

claims: $(DATA)
	$(BIN)/everypool claims $(ARGS)

test: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m slow tests $(ARGS)

sanitize: $(ALL)
	CC=g++ CXX=g++ EVERYPOOL_BUILD=$(ISA) EVERYPOOL_BUILD_FLAGS="$(SANITIZERS)" \
		$(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	$(SANITIZER_ENV) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow" \
		$(UNSANITIZED:%=--ignore tests/test_%.py) tests $(ARGS)

# Origins of what was never written: unoptimized enough to name lines, and without torch, which would take hours.
valgrind: $(BASE)
	EVERYPOOL_BUILD=baseline EVERYPOOL_BUILD_FLAGS="-g -O1" $(BIN)/python setup.py -q build --build-base $(WATCHED) --build-lib $(WATCHED)/lib
	PYTHONMALLOC=malloc valgrind --quiet --suppressions=tests/valgrind.supp --track-origins=yes --error-exitcode=9 $(BIN)/python -S tests/fuzz_loops.py --cases 3000 \
		--library $(WATCHED)/lib/everypool/_cpu_baseline.abi3.so $(ARGS)

fuzz: $(ALL)
	$(BIN)/python tests/fuzz_loops.py $(ARGS)

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/bans
	$(if $(filter x86_64,$(shell uname -m)),ls csrc/*.cpp | xargs -P 2 -I{} $(CXX) -fsyntax-only -std=c++17 $(AVX512) -Wall -Wextra -Wno-psabi \
		-DEP_MODULE=_cpu_avx512 -I$(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))') {})

docs: $(ALL)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: $(ALL)
	$(BIN)/python -m benchmarks $(ARGS)

# where a GPU is there may be no network: only what its Python has, and nothing is built
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu $(ARGS)

wheel: $(ALL)
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist docs/_build docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis report.html claims.html runs

# torch and the build backend come first, pinned: a build in isolation would fetch a torch of its own
$(BASE): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("PYTHON must be Python 3.11 or later, got %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV), once; torch is a large download"
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools
	@touch $@

$(CLI): $(BASE) pyproject.toml
	EVERYPOOL_BUILD=$(SETS) $(PIP) --no-build-isolation --editable '.[cli]'
	@touch $@

$(DATA): $(BASE) pyproject.toml
	EVERYPOOL_BUILD=$(SETS) $(PIP) --no-build-isolation --editable '.[cli,data]'
	@touch $@ $(CLI)

# timm without what it depends on, since its torchvision wants another build of torch; the study gets along with it
$(ALL): $(BASE) pyproject.toml
	EVERYPOOL_BUILD=$(SETS) $(PIP) --no-build-isolation --editable '.[all]'
	$(PIP) huggingface-hub safetensors pyyaml
	$(PIP) --no-deps timm torchvision
	@touch $@ $(CLI) $(DATA)
