# make demo     the whole method with one real handwritten digit per class, from nothing to tables and figures
# make test     all tests
# make lab      JupyterLab on the notebooks (elsewhere: make lab FLAGS="--no-browser --port 8889", as root --allow-root)
# make site     the executed notebooks, figures and API as static pages (RUN=outputs/...: of another run)
# make browser  the notebooks in JupyterLab and the site, tested in a real Chromium
# make results  the committed results: a night of two cores; goes on where it was (STUDIES=tiny: the main table alone)
# make rehearsal  the paper's notebooks at full size with random weights, a few steps (FLAGS="--precision no")
# make pretrain the tiny base models, again from the beginning
PYTHON ?= python3
CORES ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
SNAKEMAKE := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --quiet host reason --logger rich \
	--show-failed-logs -s workflow/Snakefile --cores $(CORES)

STUDIES := tiny tiny_shots tiny_fakeit tiny_ablations tiny_images
SHOWN = $(or $(RUN),outputs/site/mnist5k_datadream_cls_16shot_seed0)
PAPERMILL := $(BIN)/papermill -k python3 --no-progress-bar --start-timeout 600

.PHONY: demo test lab site site-notebooks browser results rehearsal pretrain lint
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "Python 3.11 to 3.13 is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: .venv/installed
	$(SNAKEMAKE) --configfile params/studies/demo.yaml
	@cat outputs/demo/figures/main_results.md outputs/demo/figures/resnet_results.md outputs/demo/figures/conclusion.md
	@echo "The table is in outputs/demo/figures/main_results.md, the figures are beside it; the executed notebooks are in outputs/demo."

test: .venv/installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile

.venv/site: .venv/installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,site,browser]'
	@touch $@

# Executed once, for the site: 03 with all settings beside each other (a study trains each in a notebook of its own), the
# solutions beside the run, 05 with its example beside the study
site-notebooks: .venv/site
	@test -n "$(RUN)" || $(SNAKEMAKE) --configfile params/studies/site.yaml
	@test -n "$(RUN)" || test -e $(SHOWN)/03_train_clip.ipynb || \
		$(PAPERMILL) notebooks/03_train_clip.ipynb $(SHOWN)/03_train_clip.ipynb -f params/site.yaml
	@mkdir -p $(SHOWN)/solutions
	@for n in $(notdir $(basename $(wildcard solutions/*.ipynb))); do \
		test -e $(SHOWN)/solutions/$$n.ipynb || $(PAPERMILL) solutions/$$n.ipynb $(SHOWN)/solutions/$$n.ipynb \
			-r run_folder $(abspath $(SHOWN)) || exit; done
	@test -e $(SHOWN)/../05_your_own_images.ipynb || $(PAPERMILL) notebooks/05_your_own_images.ipynb \
		$(SHOWN)/../05_your_own_images.ipynb -r output_root $(abspath $(SHOWN)/../your_own_images)

site: site-notebooks
	$(BIN)/mkdocs build
	@echo "The site is in build/site: open build/site/index.html, no server and no network needed."

browser: site-notebooks
	$(BIN)/python -m pytest tests/browser

lab: .venv/installed
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/01_adapt_sd.ipynb $(FLAGS)

results: .venv/installed
	for study in $(STUDIES); do $(SNAKEMAKE) runs --configfile params/studies/$$study.yaml || exit; done
	$(SNAKEMAKE) --forcerun analysis beyond --configfile params/studies/tiny.yaml
	$(BIN)/python -m workflow.scripts.collect outputs/tiny figures/tiny
	@cat figures/tiny/main_results.md

rehearsal: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.rehearsal $(FLAGS)

pretrain: .venv/installed
	$(BIN)/python -m models.pretraining.pretrain --output models
