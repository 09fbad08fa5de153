# make distill is the main job, make test the tests. RECIPE= STUDENT= FUSION= SET= select; see README.md.
RECIPE ?= fashion
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
RUN := $(VENV)/bin/python -m stages
SETS := $(foreach word,$(SET),--set '$(word)')
STAGES := data teachers logits

.DEFAULT_GOAL := help
.PHONY: help setup lint format test test-slow test-faults bench bench-store bench-fuse bench-gpu table-fusion table-curves table-online table-published table-peers table-sources recipes verify status report fuse distill clean $(STAGES)

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(VENV)/.done ## Make .venv; nothing to do while pyproject.toml stays the same.

$(VENV)/.done: pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12) and "error: Python %d.%d; expected 3.12 or newer; run make setup PYTHON=python3.12" % sys.version_info[:2])'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(STAGES): setup ## (data, teachers, logits) Run a stage and whatever it needs.
	@$(RUN) $@ $(RECIPE) $(SETS)

fuse: setup ## Fuse teacher stores into target stores; FUSION= picks one.
	@$(RUN) fuse $(RECIPE) $(if $(FUSION),--fusion $(FUSION)) $(SETS)

distill: setup ## The main job: students, baselines and the report; STUDENT= and FUSION= pick one.
	@$(RUN) distill $(RECIPE) $(if $(STUDENT),--student $(STUDENT)) $(if $(FUSION),--fusion $(FUSION)) $(SETS)

table-sources: setup ## Accuracy with none to all sources missing at test; resumable.
	@$(VENV)/bin/python -m tests.bench.table_sources

recipes: setup ## Every recipe of a task, one after the other, and one page of all; FULL=1 runs the long ones, too.
	@$(RUN) recipes $(if $(FULL),--full)

report: setup ## Write the report of what is finished.
	@$(RUN) report $(RECIPE) $(SETS)

verify: setup ## Read every byte of every store; STORE= picks one.
	@$(RUN) verify $(or $(STORE),data)

status: setup ## Say what exists, its size, what is stale.
	@$(RUN) status $(RECIPE) $(SETS)

lint: setup ## Check style and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: setup ## Mend style.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

test: setup ## Run the tests on both cores, one thread each: two threads each would wait for one another.
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2

test-slow: setup ## Run the tests that take minutes.
	$(VENV)/bin/python -m pytest -m slow

test-faults: setup ## Kill, rot, crowd and fill stores a hundred times over.
	$(VENV)/bin/python -m pytest -m faults

bench: setup ## Print performance ratios, each of two things run in turn.
	@$(VENV)/bin/python -m tests.bench $(RECIPE)

bench-store: setup $(PEERS)/.done ## The same for stores, against memmaps and other formats.
	@$(VENV)/bin/python -m tests.bench.store
	@$(VENV)/bin/python -m tests.bench.codecs
	@$(VENV)/bin/python -m tests.bench.shuffle

$(PEERS)/.done: | setup
	$(VENV)/bin/python -m venv $(PEERS)
	$(VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])' > "$$($(PEERS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/stillroom.pth"
	-$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check litdata mosaicml-streaming lmdb
	-$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torchdistill
	touch $@

bench-fuse: setup ## The same for fusing; memory for a million rows of a thousand classes.
	@$(VENV)/bin/python -m tests.bench.fusing

table-fusion: setup ## The table of fusions: one student each, whole teachers and a broken one; resumable.
	@$(VENV)/bin/python -m tests.bench.table_fusion

table-curves: setup ## Accuracy against cached views, codec, temperature and share of data; resumable.
	@$(VENV)/bin/python -m tests.bench.table_curves

table-online: setup ## A student from the store beside the same one with its teachers in the loop; resumable.
	@$(VENV)/bin/python -m tests.bench.table_online

table-published: setup ## Hinton's omitted class, a soft decision tree, self-distillation: ours beside the published.
	@$(VENV)/bin/python -m tests.bench.table_published

table-peers: setup $(PEERS)/.done ## Our losses from the store against torchdistill's with the teachers in the loop.
	@$(PEERS)/bin/python -m tests.bench.table_peers

bench-gpu: setup ## The same for a dump on a GPU.
	@$(VENV)/bin/python -m tests.bench.gpu
