# make demo   pictures from the embedded model            make test   the whole test suite
# make lint   ruff and mypy                               make sheets the pictures and tables under docs/
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
export TORCH_INDEX TORCH_BUILD

.PHONY: demo test lint environment dev-environment

demo: environment
	$(RUN) txt2img.py --prompt "a red circle to the left of a blue square" --n_samples 4 --seed 1

test: dev-environment
	$(RUN) -m pytest -q

lint: dev-environment
	$(RUN) -m ruff check .
	$(RUN) -m mypy

environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal demo

dev-environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal test --requirements requirements-dev.txt
