# The two commands: make demo, make test. Each makes the environment in .venv where it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# PyPI's torch for Linux carries CUDA, several GB; this index has the one for CPUs. Where there is an NVIDIA driver PyPI's is taken,
# with RAPIDS beside it.
GPU := $(shell command -v nvidia-smi)
TORCH_INDEX ?= $(if $(GPU),,https://download.pytorch.org/whl/cpu)
EXTRAS ?= small,dev,bench$(if $(GPU),$(,)cu13)
, := ,
DEMO ?= demo-output

.PHONY: demo test test-gpu fuzz lint docs bench notebooks clean

$(VENV)/.ready: pyproject.toml
	@test -x $(BIN)/python || { echo "Making the environment in $(VENV) (a few minutes, once) ..."; $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -c 'import torch' 2>/dev/null || { echo "Installing torch ..."; $(PIP) --no-deps --retries 1 'torch==2.13.0' \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)); }
	@echo "Installing imgcurate and what it needs (a minute or two, in which pip says nothing) ..."
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(VENV)/.ready
	$(BIN)/imgcurate demo $(DEMO) --overwrite

test: $(VENV)/.ready
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-gpu: $(VENV)/.ready
	$(BIN)/python -m pytest -q tests/gpu

FUZZ ?= archives programs pictures
FUZZ_SECONDS ?= 600

fuzz: $(VENV)/.ready
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m fuzz.driver $(FUZZ) --seconds $(FUZZ_SECONDS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A warning, such as of a link that leads nowhere, is an error. The pages: build/docs/index.html
docs: $(VENV)/.ready
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/docs

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/end_to_end.py
	$(BIN)/python benchmarks/embed.py
	$(BIN)/python benchmarks/dedup.py --most-rows 1000000
	$(BIN)/python benchmarks/removal.py
	$(BIN)/python benchmarks/content.py
	$(BIN)/python benchmarks/neighbours.py
	$(BIN)/python benchmarks/outliers.py
	$(BIN)/python benchmarks/representatives.py
	$(BIN)/python benchmarks/resume.py
	$(BIN)/python benchmarks/requests.py
	$(BIN)/python benchmarks/listing.py

# Runs them and keeps what they show, but for how far a verb is; the tests only run them.
notebooks: $(VENV)/.ready
	DASK_IMGCURATE__PROGRESS=False $(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean:
	rm -rf $(VENV) $(DEMO) build/docs
