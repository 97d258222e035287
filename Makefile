# make demo   pictures from the embedded model            make test   the whole test suite
# make lint   ruff and mypy                               make tables the pictures and tables under docs/
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
export TORCH_INDEX TORCH_BUILD

.PHONY: demo test lint tables environment dev-environment

demo: environment
	$(RUN) txt2img.py --prompt "a red circle to the left of a blue square" --n_samples 4 --seed 1 --guidance_scale 3

test: dev-environment
	$(RUN) -m pytest -q

lint: dev-environment
	$(RUN) -m ruff check .
	$(RUN) -m mypy

tables: environment
	$(RUN) -m dpt pocket measure --prompts 200 --guidance_scale 3
	$(RUN) -m dpt scenes check --num 1000 --seed 7 --world pocket --vae ckpt/pocket --json docs/oracle/pocket.json
	$(RUN) -m dpt scenes check --num 1000 --seed 7 --world full --json docs/oracle/full.json

environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal demo

dev-environment:
	@$(PYTHON) tools/make_venv.py $(VENV) --goal test --requirements requirements-dev.txt
