SHELL := /bin/sh
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HEADGRAFT := $(BIN)/headgraft

CACHE ?= features
RUN ?= runs/head
MODEL ?= model.safetensors
PASSES ?= 1
DATA ?= $(wildcard $(HEADGRAFT_FLOWERS))
ARGS ?=
TORCH_INDEX ?=

# pip shows its progress on a terminal. Of a version at both indexes it takes that of TORCH_INDEX, such as 2.14.1+cpu.
PIP_INSTALL = $(BIN)/python -m pip install $$([ -t 2 ] || echo --quiet) --disable-pip-version-check \
	--constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)")

.PHONY: help setup setup-ray setup-notebook notebook extract train-head sweep report label evaluate export predict demo test soak guides lint types bench-backbones bench-extract bench-abstaining bench-small-sets bench-labels bench-labelling bench-levers bench-rungs bench-sweep bench-predict bench-ray bench-scale bench-unknown compare-backbones gpu simulate results clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { name[++n] = $$1; text[n] = $$2; if (length($$1) > most) most = length($$1) } \
		END { for (i = 1; i <= n; i++) printf "  make %-" most "s  %s\n", name[i], text[i] }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Install everything into .venv, pinned: several GB, several minutes [TORCH_INDEX=]

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "Installing into $(VENV): a download of several GB, less with TORCH_INDEX (see README.md); it takes minutes." >&2
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

setup-ray: setup ## Install Ray too, for --engine ray
	$(PIP_INSTALL) --editable '.[ray]'

setup-notebook: setup ## Install what docs/tutorial.ipynb needs
	$(PIP_INSTALL) --editable '.[notebook]'

extract: setup ## Stage one: DATA=folder [CACHE= PASSES= ARGS=]
	@test -n "$(DATA)" || { echo "Say which images: make extract DATA=path/to/folder, or set HEADGRAFT_FLOWERS to the flowers" >&2; exit 1; }
	$(HEADGRAFT) extract "$(DATA)" --cache "$(CACHE)" --passes $(PASSES) $(ARGS)

train-head: setup ## Stage two: a head from the cache [CACHE= RUN= ARGS=]
	$(HEADGRAFT) train-head --cache "$(CACHE)" --run "$(RUN)" $(ARGS)

sweep: setup ## Stage two: try many heads, keep the best in RUN=runs/sweep [CACHE= ARGS=]
	$(HEADGRAFT) sweep --cache "$(CACHE)" --run "$(if $(filter file,$(origin RUN)),runs/sweep,$(RUN))" $(ARGS)

report: setup ## One page on the run, report.html in it [RUN= ARGS=]
	$(HEADGRAFT) report "$(RUN)" $(ARGS)

label: setup ## A page to correct labels and label images; writes RUN=runs/labelled when asked [CACHE= ARGS=]
	$(HEADGRAFT) label --cache "$(CACHE)" --run "$(if $(filter file,$(origin RUN)),runs/labelled,$(RUN))" $(ARGS)

evaluate: setup ## Score the run on its test images [RUN= ARGS=]
	$(HEADGRAFT) evaluate "$(RUN)" $(ARGS)

export: setup ## One combined model from the run [RUN= MODEL= ARGS=]
	$(HEADGRAFT) export "$(RUN)" "$(MODEL)" $(ARGS)

predict: setup ## Name what is in an image: IMAGE=file [MODEL= ARGS=]
	@test -n "$(IMAGE)" || { echo "Say which image: make predict IMAGE=path/to/image.jpg" >&2; exit 1; }
	$(HEADGRAFT) predict "$(MODEL)" "$(IMAGE)" $(ARGS)

demo: setup ## The whole way on handwritten digits; fetches VGG16's weights, 64 MB
	$(BIN)/python tests/demo.py

notebook: setup-notebook ## Run docs/tutorial.ipynb again, of the flowers or of digits (about a minute) [ARGS=]
	$(BIN)/python docs/notebook.py $(ARGS)

test: setup ## Run the tests
	$(BIN)/python -m pytest $(ARGS)

soak: setup ## Run the long tests in full (about 20 minutes)
	$(BIN)/python -m pytest --soak -s -m soak $(ARGS)

guides: setup ## Run the commands of README and the guides on a few real flowers [ARGS="PAGE --download"]
	$(BIN)/python tests/run_guides.py $(ARGS)

lint: setup ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## Check types
	$(BIN)/mypy

bench-abstaining: setup ## Whether promises of errors and false alarms are kept, and evidence by deletion [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_abstaining.py --cache "$(CACHE)" $(ARGS)

bench-small-sets: setup ## Promises of models of few images, by the temperature of held-out heads [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_small_sets.py --cache "$(CACHE)" $(ARGS)

bench-levers: setup ## What could make heads more accurate, tried by folds (about 20 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_levers.py --cache "$(CACHE)" $(ARGS)

bench-unknown: setup ## Which score tells unknown images (about 5 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_unknown.py --cache "$(CACHE)" $(ARGS)

bench-rungs: setup ## What stopping heads early and choosing an epoch cost (about 15 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_rungs.py --cache "$(CACHE)" $(ARGS)

bench-sweep: setup ## How the time of a sweep grows with heads, images and epochs (about 2 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_sweep.py --cache "$(CACHE)" $(ARGS)

bench-labels: setup ## How label issues find wrong labels, under four kinds of noise (about 10 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_labels.py "$(CACHE)" $(ARGS)

bench-labelling: setup ## How many verdicts and labels the labelling page saves [CACHE= ARGS="fix --set NAME"]
	$(BIN)/python tests/benchmarks/bench_labelling.py $(ARGS) --cache "$(CACHE)"

bench-predict: setup ## Time predictions and the service (about 20 minutes) [MODEL= ARGS=]
	$(BIN)/python tests/benchmarks/bench_predict.py "$(MODEL)" $(ARGS)

bench-extract: setup ## Time stage one beside a plain script and the processor's limit (about 30 minutes) [ARGS=]
	$(BIN)/python tests/benchmarks/bench_extract.py $(ARGS)

bench-backbones: setup ## Time networks beside torch.compile and onnxruntime, and write it (about 30 minutes) [ARGS=]
	$(BIN)/python tests/benchmarks/bench_backbones.py $(ARGS)
	$(BIN)/python docs/write.py

bench-ray: setup-ray ## Stage one and a sweep on Ray beside one process (about 15 minutes) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/bench_ray.py $(if $(wildcard $(CACHE)/manifest.json),--cache "$(CACHE)") $(ARGS)

compare-backbones: setup ## The table of docs/backbones.md, from caches of both splits (about 5 minutes) [CACHES=]
	$(BIN)/python tests/benchmarks/compare_backbones.py $(CACHES)

gpu: ## On a machine with CUDA: tests and rates of its device (about 9 minutes) [PYTHON= ARGS=]
	$(PYTHON) tests/benchmarks/bench_gpu.py $(ARGS)

bench-scale: setup ## Time a cache of up to a million images, tiny ones (about 30 minutes) [ARGS=]
	$(BIN)/python tests/benchmarks/bench_scale.py $(ARGS)

simulate: setup ## Stage one on many machines, simulated: failures, slow ones (about 10 minutes) [ARGS=]
	$(BIN)/python tests/benchmarks/simulate.py $(ARGS)

# Caches of the sets that nothing was tuned on are made in $(CACHE)-untouched; the other figures need CACHE to be there.
results: setup ## Measure the figures of README.md, docs/results.md and docs/untouched.md (more than half an hour) [CACHE= ARGS=]
	$(BIN)/python tests/benchmarks/results.py "$(CACHE)" $(ARGS)
	$(BIN)/python docs/write.py

clean: ## Remove .venv and caches of the tools, never features, runs or models
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
