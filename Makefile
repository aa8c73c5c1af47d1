# PhotoFlux: what people do with it. `make help` lists the verbs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PHOTOFLUX_STATE_DIR ?= $(CURDIR)/.photoflux
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

.PHONY: help install demo demo-bad serve load chaos attack test test-slow lint compile run repro pretrain generate mlflow bench clean

help: ## list what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## set up the Python environment in .venv (the other targets do it when needed)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or name one: make PYTHON=python3.12 …" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[validate,train,track,vault,serve,orchestrate,dev]'
	@touch $@

demo: $(STAMP) ## photos in, an audited, registered model and pictures out (two to three minutes on two cores)
	$(BIN)/python -m pipelines.demo

demo-bad: $(STAMP) ## the same with an over-trained recipe: the gate must say FAIL and name the rule
	$(BIN)/python -m pipelines.demo --bad

serve: $(STAMP) ## the whole service on this machine: API, engine, worker, sign-in, MLflow (ARGS=--tls for https)
	$(BIN)/python -m api.serve $(ARGS)

load: $(STAMP) ## a hundred people at once on this machine; figures in benchmarks/results/load.json
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[load]'
	$(BIN)/python -m benchmarks.load $(ARGS)

chaos: $(STAMP) ## a day of twenty people under fifty kills, on SQLite and PostgreSQL; benchmarks/results/chaos.json
	$(BIN)/python -m benchmarks.chaos $(ARGS)

attack: $(STAMP) ## a quarter of an hour under attack; figures in benchmarks/results/attack.json
	$(BIN)/python -m benchmarks.attack $(ARGS)

run: $(STAMP) ## personalise your own photos: make run PHOTOS=folder CLASS=dog
	$(BIN)/python -m pipelines.run --photos '$(PHOTOS)' --class-noun '$(CLASS)' $(ARGS)

generate: $(STAMP) ## draw pictures: make generate MODEL=demo PROMPT="a photo of sks dog in space" N=4
	$(BIN)/photoflux generate --model '$(MODEL)@champion' --prompt '$(PROMPT)' --n $(N) --seed $(SEED) --size $(SIZE) --format $(FORMAT) --style $(STYLE)

compile: $(STAMP) ## write pipelines/compiled/personalize.yaml from the pipeline and params.yaml
	$(BIN)/python -m pipelines.compile

repro: $(STAMP) ## re-run what changed: dvc repro
	PATH='$(CURDIR)/$(BIN)':"$$PATH" $(BIN)/dvc repro

pretrain: $(STAMP) ## train the pocket base and its judges from a seed (hours on a CPU; can be interrupted)
	$(BIN)/photoflux pretrain --out models/pocket $(ARGS)
	$(BIN)/dvc commit --force pretrain

mlflow: $(STAMP) ## open the MLflow UI on the local registry
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(PHOTOFLUX_STATE_DIR)/mlflow.db --host 127.0.0.1 --port 5000

bench: $(STAMP) ## measure the pocket base, twelve calibration subjects and the statistics of judging; tables in benchmarks/results
	$(BIN)/python -m benchmarks.statistics
	$(BIN)/python -m benchmarks.pocket_base
	$(BIN)/python -m benchmarks.subjects

test: $(STAMP) ## the tests a change must pass (about ten minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n auto --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the tests that take longer
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check photoflux components pipelines api tests
	$(BIN)/mypy

clean: ## remove what runs left behind (not the environment, not the registry)
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .coverage* lightning_logs
