# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
BIN := .venv/bin
# Libraries' telemetry stays off, whatever their defaults.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export ORT_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1

# Two processes of one thread each share the tests; PROCESSES=0 runs them in this one.
PROCESSES ?= 2
SHARED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-full test-swift test-onnxruntime bench interop lint clean

demo: .venv/ready
	$(BIN)/fourstep build recipes/shapes-flash.toml
	@for package in onnx-int8 onnx-int4 openvino-int8 openvino-int4 coreml-int8 coreml-int4; do \
	  $(BIN)/fourstep run artifacts/shapes-flash/$$package \
	    "two red circles left of a blue square" --seed 7 --out artifacts/demo-$$package.png || exit; \
	done

test: .venv/ready tests/web/node_modules/ready lint
	$(SHARED) -m "not full"

test-full: .venv/ready tests/web/node_modules/ready tests/jvm/node_modules/ready lint
	$(SHARED)

# The loop in Swift, with the system's compiler or that of a folder that .ci/swift-root made.
SWIFT_ROOT ?=

test-swift: .venv/ready
	FOURSTEP_SWIFT_ROOT=$(SWIFT_ROOT) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_swift_built.py

# The loop in C++ and Java on onnxruntime: with what .ci/onnxruntime and .ci/android-jar made.
ONNXRUNTIME_ROOT ?=
ANDROID_JAR ?=

test-onnxruntime: .venv/ready tests/jvm/node_modules/ready
	ONNXRUNTIME_ROOT=$(ONNXRUNTIME_ROOT) ANDROID_JAR=$(ANDROID_JAR) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest tests/test_cpp_onnx.py tests/test_jvm_onnx.py

bench: .venv/ready .venv-optimum-intel/ready .venv-optimum-onnx/ready
	$(BIN)/python -m benchmarks.onnx_forms
	$(BIN)/python -m benchmarks.openvino_forms
	$(BIN)/python -m benchmarks.weight_formats
	$(BIN)/python -m benchmarks.frontier artifacts/frontier --ablation
	$(BIN)/python -m benchmarks.fidelity --packages artifacts/frontier/*-*/ --json artifacts/frontier/fidelity.json --results artifacts/frontier/results.json --plot artifacts/frontier/fidelity.png
	$(BIN)/python -m benchmarks.runtime
	$(BIN)/python -m benchmarks.memory recipes/shapes-flash.toml
	$(BIN)/python -m benchmarks.deltas artifacts/deltas
	$(BIN)/python -m benchmarks.clients artifacts/clients --json artifacts/clients/figures.json
	$(BIN)/python -m benchmarks.fullsize artifacts/fullsize --limits 1.5G 2G 3G 4G 6G
	$(BIN)/python -m benchmarks.fullsize artifacts/fullsize --avx2 --only "fourstep*" "optimum-intel, OpenVINO GenAI int4"
	$(BIN)/python -m benchmarks.fullsize artifacts/fullsize --schemes int4 --only "fourstep openvino-int4, kept open" --px 512 768 1024
	$(BIN)/python -m benchmarks.fullsize artifacts/fullsize --schemes int4 --only "fourstep openvino-int4, kept open" --steps 2 8
	$(BIN)/python -m benchmarks.fullsize artifacts/fullsize-half --preset sd3.5-flash-half --schemes int4 --only "fourstep openvino-int4, kept open"

# Clients of others, each in an environment of its own, as locked in tests/interop.
PEERS := optimum-intel optimum-onnx comfy

interop: .venv/ready $(PEERS:%=.venv-%/ready)
	$(BIN)/python -m pytest tests/test_interop.py

.venv-%/ready: tests/interop/%.txt
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	if [ $* = comfy ]; then \
	  .venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .; \
	else \
	  cp -r exporter/plugins/optimum .venv-$*/plugin \
	    && .venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps .venv-$*/plugin; \
	fi
	touch $@

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	touch $@

# Node's packages, by the lock file; without npm the tests that need them say so and are skipped.
tests/web/node_modules/ready: tests/web/package-lock.json
	@if command -v npm > /dev/null; then \
	  ONNXRUNTIME_NODE_INSTALL=skip npm ci --ignore-scripts --no-audit --no-fund --prefix tests/web \
	    && touch $@ || echo "npm ci failed: tests of the loop in JavaScript are skipped"; \
	fi

# JetBrains' compiler, by the lock file.
tests/jvm/node_modules/ready: tests/jvm/package-lock.json
	@if command -v npm > /dev/null; then \
	  npm ci --ignore-scripts --no-audit --no-fund --prefix tests/jvm \
	    && touch $@ || echo "npm ci failed: tests of Kotlin are skipped"; \
	fi

clean:
	rm -rf .venv tests/web/node_modules tests/jvm/node_modules artifacts/*/onnx-* artifacts/*/openvino-* artifacts/*/coreml-* artifacts/*/report artifacts/*/statistics artifacts/*/*.log.json artifacts/*/.*.partial artifacts/*/.*.old artifacts/*/.*.part artifacts/*/.*.journal.json artifacts/*/.fourstep.* artifacts/demo-*.png
