# Everything runs in .venv at the root. `make help` lists the targets.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
CORE := .venv/.core
DEV := .venv/.dev
NATIVE_SOURCES := CMakeLists.txt $(shell find csrc -type f -not -path "csrc/tests/*")

PROMPT ?= a large red rubber ball bounces on a wooden floor
SEED ?= 7
CLIPS ?= 6000

# What limits each library to AVX2. OpenVINO needs its own limit and oneDNN's to agree; ONNX Runtime has none.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OV_CPU_MAX_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" SYNCFLOW_INSTRUCTIONS=x86-64-v3
# Of every property a few examples are tried, and where CI is set, as .ci/run does, all of them.
PYTEST := -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder
EXAMPLES := $(if $(CI),--hypothesis-profile=ci)

.DELETE_ON_ERROR:
.PHONY: help setup system-packages demo test test-fast test-avx2 native-test sanitize fuzz lanes check gate bench train-tiny clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Tests that need one of these say so and are left out where it is missing. C++: compilers, FFmpeg's headers, an HTTP library;
# web page: a browser and its driver.
SYSTEM_PACKAGES := clang libclang-rt-dev libavcodec-dev libavformat-dev libswresample-dev libswscale-dev libcpp-httplib-dev \
	pkg-config chromium chromium-driver
system-packages: ## install what some tests need beside Python, on Debian and Ubuntu as root
	@dpkg --status $(SYSTEM_PACKAGES) > /dev/null 2>&1 || \
	  { apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends $(SYSTEM_PACKAGES); }

setup: $(DEV) ## install everything into .venv, once and again when the build files change

# What generating and inspecting clips needs, and the native part.
$(CORE): setup.py pyproject.toml constraints.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --editable .
	@$(BIN)/python -c "from syncflow.engine.sampling.noise import native_status; print(native_status())"
	@touch $@

# And what training, exports, tests and checks need: of what is installed, only these extras are added.
$(DEV): $(CORE)
	$(PIP_INSTALL) "syncflow[train,export,openvino,test,dev]"
	mkdir -p .venv/src && ln -sfn ../.. .venv/src/syncflow
	@touch $@

demo: $(CORE) ## generate a clip with the bundled model: out/demo.mp4 and out/demo.png
	@mkdir -p out
	$(BIN)/syncflow generate "$(PROMPT)" --seed $(SEED) -o out/demo.mp4
	$(BIN)/syncflow inspect out/demo.mp4 -o out/demo.png
	@echo "The clip is $(CURDIR)/out/demo.mp4, a plot of it is $(CURDIR)/out/demo.png"

test: setup native-test ## the whole test suite: that of C++, then that of Python, a file at a time on every core
	$(BIN)/python $(PYTEST) $(EXAMPLES)

test-fast: setup ## the Python tests that take little time, with few random examples each
	$(BIN)/python $(PYTEST) -m "not slow"

test-avx2: setup native-test ## the test suite with every library limited to AVX2, as on a processor without AVX-512
	$(AVX2) $(BIN)/python $(PYTEST) $(EXAMPLES)

# Configures, builds and tests presets of CMakePresets.json, each in a folder under build/, with Ninja where it is installed.
ifneq ($(shell command -v ninja),)
export CMAKE_GENERATOR ?= Ninja
endif
CORES = $(shell getconf _NPROCESSORS_ONLN)
run-presets = set -e; for preset in $(1); do \
	  cmake --preset $$preset; MAKEFLAGS= cmake --build --preset $$preset --parallel $(CORES); ctest --preset $$preset --parallel $(CORES); \
	done

native-test: ## the C++ tests, where CMake and a compiler are there
	@if command -v cmake > /dev/null && command -v $${CXX:-c++} > /dev/null; then $(call run-presets,release); \
	else echo "The C++ tests are left out: they need CMake and a C++ compiler."; fi

sanitize: ## the C++ tests under ASan with UBSan, and under TSan
	@$(call run-presets,asan tsan)

# New inputs that reach other code are kept in build/fuzz/corpus.
FUZZ_SECONDS ?= 300
fuzz: ## the fuzz targets with clang's libFuzzer, FUZZ_SECONDS each
	@cmake --preset fuzz && MAKEFLAGS= cmake --build --preset fuzz --parallel $(CORES)
	@set -e; for target in json manifest safetensors request_params; do \
	  build/fuzz/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 -max_len=65536 build/fuzz/corpus/$$target; \
	done

lanes: ## the C++ tests with vectors of 4, 8 and 16 floats at every instruction level
	@$(call run-presets,lanes-4 lanes-8 lanes-16)

check: setup ## lint, format, types, and the layers of the architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gate: setup ## fail where a kernel or the choice of a runtime is slow, at every instruction level of this machine
	$(BIN)/syncflow bench gate

BENCH_HISTORY ?= out/history
BENCH_EXPORT := out/bench-model/exports/onnx/manifest.json
$(BENCH_EXPORT): engine/pretrained/syncflow-tiny/manifest.json | $(DEV)
	$(BIN)/syncflow export engine/pretrained/syncflow-tiny out/bench-model --no-codecs --no-verify
	@touch $@

bench: setup $(BENCH_EXPORT) ## time the engine beside what else runs the model: table of README.md, out/bench.json, BENCH_HISTORY
	@mkdir -p out
	$(BIN)/python -m pytest benchmarks --model out/bench-model --benchmark-json out/bench.json
	$(BIN)/python -m syncflow.benchmarks.report out/bench.json --history $(BENCH_HISTORY) \
	  --readme README.md --page docs/performance.md --save docs/speed.json

DATA ?= datasets/impacts
RUN ?= runs/tiny
train-tiny: setup ## train the bundled model from scratch, two and a half hours of a core, or go on with it (CLIPS, DATA, RUN, TRAIN="--steps 2")
	$(BIN)/syncflow data impacts $(DATA) --clips $(CLIPS) --seed 0
	$(BIN)/syncflow train $(DATA) --run $(RUN) $(TRAIN)

clean: ## remove what builds and tools leave (not .venv, runs, datasets or out)
	rm -rf build dist *.egg-info _native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
