# make demo   explain examples/both.png three times
# make test   all tests
# make check  formatting, lint and the quick tests, in less than a minute: after each change
# make lint   formatting and lint
# make clean  remove the environment and output/
# Each makes its own environment in .venv first.

PYTHON ?= python3
# processes that run tests, each with one thread
WORKERS ?= 2
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test check lint clean

demo: $(VENV)/installed
	$(RUN) vit_explain.py --model bundled
	$(RUN) vit_explain.py --model bundled --category_index 243
	$(RUN) vit_explain.py --model bundled --category "tiger cat"
	@echo
	@echo "Open these three:"
	@echo "  output/both_attention_rollout_0.900_max.png   what the model looked at"
	@echo "  output/both_grad_rollout_243_0.900_mean.png   evidence for the dog (bull mastiff)"
	@echo "  output/both_grad_rollout_282_0.900_mean.png   evidence for the cat (tiger cat)"

test: $(VENV)/installed-dev
	$(PYTEST)

check: lint
	$(PYTEST) --quiet -m "not slow"

lint: $(VENV)/installed-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt requirements-training.txt $(VENV)/installed
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt
# its requirement opencv-python would overwrite opencv-python-headless; all others are in the file
	$(RUN) -m pip install --quiet --no-deps quantus==0.6.0
	touch $@

clean:
	rm -rf $(VENV) output
