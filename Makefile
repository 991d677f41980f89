# Two commands do everything on a fresh machine: `make run` and `make test`.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: setup bench run test test-fast lint docs format results notebooks clean

setup: $(STAMP)

run: $(STAMP)
	$(PY) -m analysis.run_all

# one thread for each of the two processes: with torch's default of all cores they wait for each other
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal

test: $(STAMP)
	$(PYTEST)

# without the tests that take more than some seconds each
test-fast: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# the site, into site/; a warning ends it
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# needs DATA, the folder that holds benchmark/
results: $(STAMP)
	$(PY) -m analysis.run_all --preset paper --data-root $(DATA)

# executes all of notebooks/ in place, from the records in results/
notebooks: $(STAMP)
	$(PY) notebooks/execute.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	# compat: the clone's path, so that Python finds the package from the folder beside the clone too
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --config-settings editable_mode=compat --editable '.[dev]'
	# without their dependencies, which would replace the installed torch
	$(VENV)/bin/pip install --quiet --no-deps torchvision==0.28.0 spandrel==0.4.2 einops==0.8.2
	$(VENV)/bin/pip install --quiet --constraint constraints.txt pooch
	touch $(STAMP)

# one table after another; nothing else should run meanwhile
bench: $(STAMP)
	@for part in forward memory train_step range_search harness scale deploy kernels; do echo "## $$part"; $(PY) benchmarks/$$part.py || exit 1; echo; done

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache
