# The commands of this repository: `make demo`, `make test`; `make help` lists them all.
# Needs Python >= 3.10, a C++ compiler and make. The rest goes into .venv, which sees the system's packages,
# so a torch that is already there is used. Builds again only what changed.

PYTHON ?= python3
TORCH ?= torch==2.13.0
BUILD_DIR ?= build/cpp-test
SCOPE ?= quick

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help venv build lint format cpp-test emulated-test cuda-link cuda-all gpu-check test demo compare bench clean FORCE

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install -q
NEED_CXX := $$CXX --version >/dev/null 2>&1 || { echo "No C++ compiler: '$$CXX' does not run." \
  "Debian, Ubuntu: apt install g++. Fedora: dnf install gcc-c++. Or name one: make CXX=..."; exit 1; }
SAY := @printf '== %s\n'
SAY_FORMAT := echo '`make format` lays it out'; exit 1
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export CXX := $(if $(filter-out default undefined,$(origin CXX)),$(CXX),c++)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The pinned formatters, from pyproject.toml: linting needs these and no build.
FORMATTERS := $(shell sed -n 's/^ *"\(ruff==[^"]*\|clang-format==[^"]*\)".*/\1/p' pyproject.toml)
CPP_FILES = $(shell find csrc tests/cpp tests/cuda_emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# What the extension is made of: a change here builds again, and so does a change of torch.
BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f -o -type d)

help:
	@echo 'make demo      DCTpS against dense and sparse layers: a table, a plot, a training run'
	@echo 'make compare   every competing method of the paper against DCTpS: accuracy, cost, memory'
	@echo 'make bench     the benchmark suite, quick: tables and plots in build/bench; SCOPE=standard for more'
	@echo 'make test      lint, C++ tests, Python tests: what CI runs'
	@echo 'make build     .venv with everything installed, the C++ extension built in place'
	@echo 'make lint      check formatting and style            make format    apply them'
	@echo 'make cpp-test  the C++ library and its tests         make clean     remove .venv and what was built'
	@echo 'make emulated-test  the CUDA kernels run on the CPU, every access checked; needs GCC'
	@echo 'make cuda-link the CUDA build, linked and imported without a GPU, for one architecture; needs nvcc'
	@echo 'make cuda-all  the same for every architecture       make gpu-check OUT=DIR  tests and benchmarks on a GPU'
	@echo
	@echo 'PYTHON=$(PYTHON)  the Python to use'
	@echo 'TORCH="$(TORCH)"  what is installed where Python has none; without a GPU, the CPU build is smaller:'
	@echo '      make demo TORCH="$(TORCH) --index-url https://download.pytorch.org/whl/cpu"'
	@echo 'MAX_JOBS, CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST, DCTPS_FORCE_CUDA=1, DCTPS_FORCE_CPU=1: see setup.py'

venv: $(VENV)/stamp-venv
$(VENV)/stamp-venv:
	@[ '$(VENV)' = .venv ] || [ ! -e '$(VENV)' ] || { \
	  echo "VENV=$(VENV) exists, and make did not make it: it would be deleted. Name a new one."; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, and '$(PYTHON)' is not one. Name another: make PYTHON=..."; exit 1; }
	$(SAY) 'creating .venv (--system-site-packages)'
	@$(PYTHON) -m venv --system-site-packages $(VENV) || { rm -rf $(VENV); \
	  echo "No virtual environment could be made. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

# Installed over the system's where that is too old. Ninja is asked as a command, which is how torch calls it.
$(VENV)/stamp-tools: $(VENV)/stamp-venv
	@$(PIP) 'setuptools>=77'
	@ninja --version >/dev/null 2>&1 || $(PIP) --ignore-installed --no-deps ninja
	@$(PY) -c 'import torch; raise SystemExit(torch.__version__ < (2, 4))' 2>/dev/null || { \
	  echo '== installing $(TORCH) (large; `make help` names a smaller CPU build)'; $(PIP) $(TORCH); }
	@touch $@

$(VENV)/torch-version: FORCE $(VENV)/stamp-tools
	@$(PY) -c 'from importlib.metadata import version; print(version("torch"))' >$@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

build: $(VENV)/stamp-build
$(VENV)/stamp-build: $(BUILD_INPUTS) $(VENV)/torch-version
	@$(NEED_CXX)
	$(SAY) 'building dctps_ext (the first time takes minutes)'
	@$(PIP) --no-build-isolation -e .
	@$(PY) -c "from dctps_ext._load import summary; print('   ' + summary())"
	@touch $@

# The package is there already, so these install what the named extra adds, and nothing that the system has.
$(VENV)/stamp-%: $(VENV)/stamp-build
	$(SAY) 'installing what make $* needs'
	@$(PIP) 'dctps_ext[$*]'
	@touch $@

$(VENV)/stamp-formatters: $(VENV)/stamp-venv pyproject.toml
	@$(PIP) $(FORMATTERS)
	@touch $@

lint: $(VENV)/stamp-formatters
	$(SAY) 'lint: ruff, clang-format'
	@$(PY) -m ruff check -q --output-format concise .
	@$(PY) -m ruff format -q --check . || { $(PY) -m ruff format --check . ; $(SAY_FORMAT); }
	@$(if $(CPP_FILES),$(VENV)/bin/clang-format --dry-run -Werror $(CPP_FILES) || { $(SAY_FORMAT); })

format: $(VENV)/stamp-formatters
	@$(PY) -m ruff check -q --fix .
	@$(PY) -m ruff format -q .
	@$(if $(CPP_FILES),$(VENV)/bin/clang-format -i $(CPP_FILES))

cpp-test: $(VENV)/stamp-tools
	@$(NEED_CXX)
	$(SAY) 'C++ tests'
	@cmake --version 2>/dev/null | grep -Eq 'version (3\.[2-9][0-9]|[4-9])' || \
	  $(PIP) --ignore-installed --no-deps cmake
	@{ cmake -S . -B $(BUILD_DIR) -G Ninja && cmake --build $(BUILD_DIR) $(if $(MAX_JOBS),-j $(MAX_JOBS)); } \
	  >$(VENV)/cmake.log 2>&1 || { cat $(VENV)/cmake.log; exit 1; }
	@ctest --test-dir $(BUILD_DIR) --output-on-failure --no-tests=error --progress

# A build of its own beside the package's, which Python loads under the sanitizers' libraries. libstdc++ with them, as
# they look for its exceptions when Python starts; leaks are Python's and torch's.
EMULATED := build/emulated
EMULATED_ENV = DCTPS_EXTENSION=$$(ls $(EMULATED)/dctps_ext/_C*.so) \
  LD_PRELOAD="$$($$CXX -print-file-name=libasan.so) $$($$CXX -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=64 UBSAN_OPTIONS=print_stacktrace=1
emulated-test: $(VENV)/stamp-test
	$(SAY) 'CUDA kernels, emulated, with sanitizers'
	@if $$CXX --version | grep -q clang; then echo 'skipped: the emulator needs GCC, and CXX is Clang'; else \
	  DCTPS_EMULATED=1 DCTPS_SANITIZE=address,undefined $(PY) setup.py -q build_ext --build-lib $(EMULATED) \
	    >$(VENV)/emulated.log 2>&1 || { grep -A9 'error' $(VENV)/emulated.log | cut -c1-300 | head -40; exit 1; }; \
	  $(EMULATED_ENV) $(PY) -m pytest -q tests/test_ops_linear.py tests/test_ops_conv.py tests/test_cuda_kernels.py \
	    -k 'emulated or test_cuda_kernels'; fi

# Compiles the kernels anew each time, because the compiler's report on them is part of the check.
cuda-link: $(VENV)/stamp-build
	$(SAY) 'CUDA: build, link, import'
	@$(PY) tools/cuda_link.py

cuda-all: $(VENV)/stamp-build
	$(SAY) 'CUDA: build for every architecture, link, import'
	@$(PY) tools/cuda_link.py --archs all

# In the Python that is there, without .venv: such a machine may have no network to fill one from.
gpu-check:
	@$(PYTHON) tools/gpu_check.py --out '$(or $(OUT),build/gpu-check)' $(if $(COMMIT),--commit '$(COMMIT)')

test: lint cpp-test emulated-test cuda-link $(VENV)/stamp-test $(VENV)/stamp-demo
	$(SAY) 'Python tests'
	@$(PY) -m pytest -q

demo: $(VENV)/stamp-demo
	$(SAY) 'layers: DCTpS against dense and sparse'
	@$(PY) -m pytest -q benchmarks --scope demo --threads 1 --benchmark-quiet --out build/demo/layers.json
	@$(PY) -m benchmarks.report build/demo/layers.json
	$(SAY) 'training: LeNet-5 on handwritten digits'
	@$(PY) -m dctps_ext.experiments.demo

compare: $(VENV)/stamp-demo
	$(SAY) 'comparison: every method on LeNet-5, digits, one epoch'
	@$(PY) -m dctps_ext.experiments.compare --out runs/compare-lenet5-digits.json

# A few minutes with the build; the benchmark itself under three. SCOPE=standard takes about 15.
bench: $(VENV)/stamp-bench
	$(SAY) 'benchmark suite: $(SCOPE)'
	@$(PY) -m pytest -q benchmarks --scope $(SCOPE) --threads 1 --benchmark-quiet --out build/bench/$(SCOPE).json
	@$(PY) -m benchmarks.report build/bench/$(SCOPE).json

clean:
	rm -rf $(VENV) build dist *.egg-info dctps_ext/_C*.so dctps_ext/_build_info.py
