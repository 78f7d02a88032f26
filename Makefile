PYTHON ?= python3
PY := .venv/bin/python
export OMP_NUM_THREADS ?= $(shell nproc)

.PHONY: setup demo test test-full test-browser lint

setup: .venv/.done

# torch and torchvision come together from the default index: a CPU-only torch beside its torchvision breaks at import
.venv/.done: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip install --python $(PY) -c constraints.txt -e '.[train,raters,test,lint]'
	touch $@

demo: setup
	$(PY) -m experiments.demo

# a process per core with one thread each: two processes of two threads would fight for the cores
test: export OMP_NUM_THREADS = 1
test: setup
	$(PY) -m pytest -n auto --maxprocesses 4

# adds the full Stable Diffusion shapes: about 12 GB of memory
test-full: setup
	$(PY) -m pytest -m '(slow or not slow) and not browser'

# adds the pages of studies with raters, and of the arena, in a headless Chromium, which has to be installed
test-browser: setup
	$(PY) -m uv pip install --python $(PY) -c constraints.txt -e '.[browser]'
	$(PY) -m pytest -m browser tests/rating tests/tournament

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
