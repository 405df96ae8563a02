# Every target makes the virtual environment it needs from pinned requirements.
PYTHON ?= python3
VENV ?= .venv
LATEST ?= .venv-latest
DEMO ?= demo-out
BENCH ?= bench-out
EXPERIMENTS ?= experiments-out
HM3 = $(VENV)/bin/hm3
# Tests of a file share its fixtures, so a file stays in one process.
IN_TWO = --numprocesses=2 --dist=loadfile

.PHONY: install demo test test-latest lint format bench bench-peers bench-serving tables table3 table4 table5 worlds requirements clean

install: $(VENV)/.installed
$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(LATEST)/.installed: requirements-latest.txt setup.py
	$(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/pip install --quiet --disable-pip-version-check -r requirements-latest.txt
	$(LATEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Simulates a log, trains HM3 on it, evaluates it beside the best possible AUC, reports, exports and serves it.
demo: install
	rm -rf $(DEMO)
	$(HM3) simulate --output_dir=$(DEMO)/data --rows=1000000
	$(HM3) train --config=configs/demo.py --data_dir=$(DEMO)/data --workdir=$(DEMO)/run
	$(HM3) evaluate --workdir=$(DEMO)/run
	$(HM3) report --workdir=$(DEMO)/run --output=$(DEMO)/report.html
	$(HM3) predict --workdir=$(DEMO)/run --data_dir=$(DEMO)/data --output=$(DEMO)/predictions.parquet
	$(HM3) export --workdir=$(DEMO)/run --export_dir=$(DEMO)/export
	TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python deploy/predict_saved_model.py $(DEMO)/export/1 \
	  position=0 category=c7 price=19.9 -- position=7 category=c7 price=199

test: install
	$(VENV)/bin/python -m pytest $(IN_TWO)

# The same tests on the newest TensorFlow, where tensorflow-io does not load.
test-latest: $(LATEST)/.installed
	$(LATEST)/bin/python -m pytest $(IN_TWO)

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Each prints its figures; they are in benchmarks/results.md.
bench: install
	for name in reading training profile_step tables evaluation start optimizer metrics negatives simulating scaling converting validating event_join; do \
	  echo "== $$name" && $(VENV)/bin/python benchmarks/$$name.py || exit 1; \
	done

# DeepCTR 0.9.4 pins an h5py that Python 3.11 cannot build, so its requirements are installed by hand.
bench-peers: install $(BENCH)/deepctr/.installed $(BENCH)/torch-rechub/.installed
	$(VENV)/bin/python benchmarks/peers/compare.py --folder=$(BENCH)
$(BENCH)/%/.installed: benchmarks/peers/requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	[ $* != deepctr ] || $(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps deepctr==0.9.4
	touch $@

# One TensorFlow on one core serves HM3 and DeepCTR's ESMM.
bench-serving: install $(BENCH)/deepctr/.installed
	$(VENV)/bin/python benchmarks/serving.py --folder=$(BENCH)

# The paper's tables on simulated logs, into docs/experiments.md. What was run before is not run again.
PAPER = $(HM3) experiment --plan=configs/experiments/simulated.py:paper --workdir=$(EXPERIMENTS)/paper --output=docs/experiments.md
tables: install
	$(PAPER)
table3 table4: install
	$(PAPER) --part=$@ $(addprefix --part=$@_,labels order losses edge_order settings)
table5: install
	$(PAPER) --part=table5

# All methods in every other world.
worlds: install
	$(HM3) experiment --plan=configs/experiments/simulated.py:worlds --workdir=$(EXPERIMENTS)/worlds --output=docs/experiments.md

requirements:
	$(PYTHON) -m venv .venv-resolver
	.venv-resolver/bin/pip install --quiet uv
	for name in requirements requirements-latest; do \
	  .venv-resolver/bin/uv pip compile --quiet --python-version 3.10 --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links $$name.in | grep -v '^-e' > $$name.resolved; \
	  (echo "# Resolved from $$name.in by \`make requirements\`."; cat $$name.resolved) > $$name.txt; \
	  rm $$name.resolved; \
	done
	rm -rf .venv-resolver

clean:
	rm -rf $(VENV) $(LATEST) $(DEMO) $(BENCH) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
