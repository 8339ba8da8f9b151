# make demo   a model learns to sort digits, in about a minute after set-up
# make demo-agent   a model learns to ask a tool, in about two minutes after set-up
# make test   everything that is claimed, proven in some minutes
# make test-all   the slow tests too: more ranks, more faults, every page of the guides, twice the random cases
# make test-vllm  the tests that need a vLLM server, which they install
# make test-integrations  the losses inside other trainers, which it installs
# make walls  the rooms of the source, and which imports which
# make bench  the claims about speed, measured
# make docs   the site of the docs, under site/
# They make the virtual environment .venv first; the second time that takes a moment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A file at a time to each of two workers: what its tests share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: walls demo demo-agent test test-all test-vllm test-integrations bench lint types format docs clean setup

demo: setup
	rm -rf runs/demo runs/demo-task
	$(BIN)/grpokit task sort_digits --output_dir runs/demo-task
	$(BIN)/grpokit train --config recipes/demo.yaml $(DEMO_FLAGS)

demo-agent: setup
	rm -rf runs/demo-agent runs/tiny-agent
	$(BIN)/python examples/make_tiny_agent.py --output_dir runs/tiny-agent
	$(BIN)/grpokit train \
		--model runs/tiny-agent/model --dataset runs/tiny-agent/train.jsonl --eval_dataset runs/tiny-agent/eval.jsonl \
		--tools examples/zoo.py:lookup --reward_funcs exact_match --max_turns 2 --max_completion_length 64 \
		--loss_type dapo --prompts_per_step 16 --num_generations 8 --num_iterations 2 \
		--learning_rate 1e-3 --lr_scheduler_type linear --max_steps 60 --logging_steps 5 \
		--output_dir runs/demo-agent $(DEMO_FLAGS)

test: setup
	$(PYTEST) -m "not slow and not vllm and not integrations" --hypothesis-profile quick $(TEST_FLAGS)

test-all: setup
	$(PYTEST) -m "not vllm and not integrations" $(TEST_FLAGS)

# Through a real vLLM server, in an environment of its own (3.5 GB).
test-vllm: setup
	$(PYTHON) .ci/vllm_environment.py .venv-vllm
	GRPOKIT_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python $(PYTEST) -m vllm $(TEST_FLAGS)

# Inside other trainers, in an environment that sees the packages of this one and adds the trainers.
test-integrations: setup
	$(BIN)/python .ci/integrations_environment.py .venv-integrations $(VENV)
	.venv-integrations/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m integrations tests/integrations $(TEST_FLAGS)
	.venv-integrations/bin/python -m pytest -n 2 tests/commands/test_convert_against_trl.py $(TEST_FLAGS)

# Every claim about speed, in a short form; benchmarks/RESULTS.md has the long one.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]" -c constraints.txt
	$(BIN)/python benchmarks/head.py --rounds 3
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/step.py --rounds 3
	$(BIN)/python benchmarks/prefix.py --repeats 3
	$(BIN)/python benchmarks/decode.py --runs 3
	$(BIN)/python benchmarks/dead_rows.py --rounds 3
	$(BIN)/python benchmarks/scaling.py --rounds 3
	$(BIN)/python benchmarks/episodes.py --episodes 16 --delays 0 --rounds 1

# Read from the code's own imports: nothing is imported.
walls:
	$(PYTHON) tests/helpers/rooms.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

# torch alone first, at the version of constraints.txt: no other package may then choose a larger build of it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "grpokit needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch and the other packages into $(VENV): some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]" -c constraints.txt
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) .venv-vllm .venv-integrations runs site build dist .pytest_cache .ruff_cache .hypothesis
