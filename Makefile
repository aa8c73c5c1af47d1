# PhotoFlux: what people do with it. `make help` lists the verbs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# What is given on the command line is text: make would expand it again for every recipe, which runs $(shell …) and eats $5.
$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(eval override $(name) := $$(value $(name)))))

# Programs that recipes start, stages of DVC among them, find the environment's `python` first.
export PATH := $(CURDIR)/$(BIN):$(value PATH)
ifeq ($(origin PHOTOFLUX_STATE_DIR),undefined)
PHOTOFLUX_STATE_DIR := $(CURDIR)/.photoflux
endif
export PHOTOFLUX_STATE_DIR
export HF_HUB_OFFLINE ?= 1
export GX_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
# glibc gives large buffers back at once and has them cleared anew; kept, they let a CPU encode pictures 1.5 times as fast.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
# OpenMP threads that spin for long while they wait bring two programs on the same cores to a standstill.
export GOMP_SPINCOUNT ?= 2000

PHOTOS ?= .photoflux/demo/photos
CLASS ?= dog
MODEL ?= demo
PROMPT ?= a photo of sks dog on the beach
N ?= 4
SEED ?= 0
SIZE ?= 512x512
FORMAT ?= png
STYLE ?= none
ARGS ?=
# Recipes read these from their environment, as "$$PROMPT": written into a recipe, the shell would read them.
export PYTHON PHOTOS CLASS MODEL PROMPT N SEED SIZE FORMAT STYLE ARGS
# Runs a command with the words of ARGS after its own.
WITH_ARGS := $(BIN)/python -m pipelines.with_args $(BIN)/python

.PHONY: help install demo demo-bad serve load chaos attack test test-slow lint compile run repro pretrain generate mlflow bench clean

help: ## list what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## set up the Python environment in .venv (the other targets do it when needed)

$(STAMP): pyproject.toml constraints.txt
	@echo "setting up the environment in $(VENV), which takes some minutes the first time"
	@command -v -- "$$PYTHON" >/dev/null || { echo "error: $$PYTHON not found; install Python 3.11 or name one: make PYTHON=python3.12 …" >&2; exit 1; }
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$PYTHON is older than Python 3.11; name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	test -x $(BIN)/python || "$$PYTHON" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[validate,train,track,vault,serve,orchestrate,dev]'
	@touch $@

demo: $(STAMP) ## photos in, an audited, registered model and pictures out (two to three minutes on two cores)
	$(BIN)/python -m pipelines.demo

demo-bad: $(STAMP) ## the same with an over-trained recipe: the gate must say FAIL and name the rule
	$(BIN)/python -m pipelines.demo --bad

serve: $(STAMP) ## the whole service on this machine: API, engine, worker, sign-in, MLflow (ARGS=--tls for https)
	$(WITH_ARGS) -m api.ops.serve

load: $(STAMP) ## a hundred people at once on this machine; figures in benchmarks/results/load.json
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[load]'
	$(WITH_ARGS) -m benchmarks.load

chaos: $(STAMP) ## a day of twenty people under fifty kills, on SQLite and PostgreSQL; benchmarks/results/chaos.json
	$(WITH_ARGS) -m benchmarks.chaos

attack: $(STAMP) ## a quarter of an hour under attack; figures in benchmarks/results/attack.json
	$(WITH_ARGS) -m benchmarks.attack

run: $(STAMP) ## personalise your own photos: make run PHOTOS=folder CLASS=dog
	$(WITH_ARGS) -m pipelines.run --photos="$$PHOTOS" --class-noun="$$CLASS"

generate: $(STAMP) ## draw pictures: make generate MODEL=demo PROMPT="a photo of sks dog in the snow" N=4
	$(BIN)/python -m photoflux generate --model="$$MODEL" --prompt="$$PROMPT" --n="$$N" --seed="$$SEED" --size="$$SIZE" --format="$$FORMAT" --style="$$STYLE"

compile: $(STAMP) ## write pipelines/compiled/personalize.yaml from the pipeline
	$(BIN)/python -m pipelines.compile

repro: $(STAMP) ## re-run what changed: dvc repro (ARGS=STAGE: up to one stage)
	$(WITH_ARGS) -m dvc repro

pretrain: $(STAMP) ## train the pocket base and its judges from a seed (hours on a CPU; can be interrupted)
	$(WITH_ARGS) -m photoflux pretrain --out models/pocket
	$(BIN)/python -m dvc commit --force pretrain

mlflow: $(STAMP) ## open the MLflow UI on the local registry
	@echo "MLflow's pages will be at http://127.0.0.1:5000; Ctrl-C ends them"
	$(BIN)/python -m api.ops.registry_pages --host 127.0.0.1 --port 5000

bench: $(STAMP) ## measure the pocket base, twelve calibration subjects and the statistics of judging; tables in benchmarks/results
	$(BIN)/python -m benchmarks.statistics
	$(BIN)/python -m benchmarks.pocket_base
	$(BIN)/python -m benchmarks.subjects

test: $(STAMP) ## the tests a change must pass (about ten minutes on two cores)
	OMP_NUM_THREADS=1 $(WITH_ARGS) -m pytest -m 'not slow' -n auto --dist loadfile

test-slow: $(STAMP) ## the tests that take longer
	$(WITH_ARGS) -m pytest -m slow

lint: $(STAMP) ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check photoflux components pipelines api tests
	$(BIN)/python -m mypy

clean: ## remove what runs left behind (not the environment, not the registry)
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .coverage* lightning_logs
