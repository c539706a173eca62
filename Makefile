# One environment, .venv, made by whichever target comes first. `make help` lists the targets.
PROFILE ?= tiny
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP := .venv/bin/python -m pip install -qq --disable-pip-version-check --root-user-action=ignore --no-compile
COMPILE := .venv/bin/python -m compileall -qq -j 0 .venv/lib || true  # on all cores, pip would on one
ROOT_USER := $(filter 0,$(shell id -u))
APT := $(if $(ROOT_USER),$(shell command -v apt-get))
export PYTHONWARNINGS ?= ignore
unexport PYTHONDONTWRITEBYTECODE  # fifteen kernels would compile the book fifteen times

# What was typed reaches a program by the environment, as it was typed: pasted into a line, make would
# read the $ in it, and sh the quotes.
NAMES = PROFILE OUT TEXT TOKENS TOKENIZER TEACHER SET ONLY FROM REDO DRY PRICE_PER_HOUR CLUSTER \
    NAME MODEL SEGMENTER DEVICE
unexport $(NAMES)
$(foreach name,$(NAMES),$(eval export TYPED_$(name) := $$(value $(name))))
given = $(foreach name,$(1),$(name)="$$TYPED_$(name)")
TOLD = $(call given,PROFILE OUT TEXT TOKENS TOKENIZER TEACHER SET ONLY FROM REDO DRY PRICE_PER_HOUR CLUSTER)
FOLDER = "$${TYPED_OUT:-outputs/$$TYPED_PROFILE}"

# a name mistyped on the command line would be another book in silence
TYPED := $(foreach v,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(v)))),$(v)))
UNKNOWN := $(filter-out $(NAMES) FULL PYTHON GPU_RUNS -%,$(TYPED))
$(if $(UNKNOWN),$(error $(firstword $(UNKNOWN))= is not known: give one of $(sort $(NAMES) FULL GPU_RUNS), in capitals))

.DEFAULT_GOAL := help
.PHONY: help setup book sweep evidence status test bench gpu-code stress lab plan doctor report
.PHONY: compare publish zip export chat page clean clean-cache

help:    ## this list
	@sed -n 's/^\([a-z-]*\): .*## /  make \1	/p' Makefile | expand -t 20
	@echo "  book takes PROFILE=tiny|smoke|small|b200|b200-night, TEXT=, TOKENS=, TOKENIZER= and TEACHER= (paths),"
	@echo "  OUT= (the run folder), ONLY= and REDO= (runs or notebooks, as 03_lora), FROM= (a notebook:"
	@echo "  what comes before it is taken as it is), DRY=1 (what would run, and why), and"
	@echo "  SET=\"token_limit=200_000_000 02_hard_set.share=0.15\" (parameters of every run, or of one,"
	@echo "  for a run folder of their own); sweep takes NAME= and all of these; GPU_RUNS=2 lets two runs"
	@echo "  share a GPU; CLUSTER=slurm makes every run a job, as profiles/slurm/config.yaml says;"
	@echo "  sweeps: NAME in 04_merge_eval.yaml lets make book ONLY=04 give its points their intervals;"
	@echo "  plan and doctor take PROFILE=, TOKENS=, TEACHER=, OUT=, ONLY= and SET= too; plan also"
	@echo "  DEVICE=here|cpu|b200|h200|h100|a100|l4 and PRICE_PER_HOUR="

setup: .venv/made ## the environment, once: .venv with all that the book needs

book: .venv/made ## run the book, or what changed of it: outputs/tiny/index.html
	@exec .venv/bin/python -m tdbook book $(TOLD)

sweep: .venv/made ## run one notebook at every point of params/PROFILE/sweeps/NAME.yaml: compare.html
	@exec .venv/bin/python -m tdbook sweep $(call given,NAME) $(TOLD)

# every model, then every sweep, then the verdicts; a failed run costs only what needs it
SWEEPS = $(shell sed -n 's/^sweeps: //p' params/small/07_evidence.yaml)
GRAPH = .venv/bin/python -m tdbook
SMALL = PROFILE=small $(call given,OUT TEXT)
evidence: .venv/made ## all that the plan's verdicts rest on: six hours of two cores, resumed; then held against what is published
	@$(GRAPH) book $(SMALL) ONLY=04_merge_eval,06_inference; $(GRAPH) sweep $(SMALL) NAME='$(SWEEPS)'; \
	    $(GRAPH) book $(SMALL) ONLY=07_evidence && \
	    .venv/bin/python -m bench.published compare "$${TYPED_OUT:-outputs/small}"

status: .venv/made ## what goes on in a run folder, and what is damaged; FULL=1 reads every file
	@exec .venv/bin/python -m tdbook status $(call given,PROFILE OUT TEXT SET FULL)

test: .venv/tested browser ## all tests; the first time installs what they need
	@exec .venv/bin/python -m pytest -n 2 --dist loadfile

bench: .venv/tested ## what the engine costs, as ratios, to the end of LOG.md: ten minutes or more
	@exec .venv/bin/python -m bench.engine

gpu-code: .venv/tested ## what torch.compile makes of the loss for sm_100 and sm_90, without a GPU; installs triton
	@.venv/bin/python -c 'import triton' 2>/dev/null || $(PIP) triton
	@exec .venv/bin/python -m bench.gpu_code

stress: .venv/tested ## kills trainings and books at random moments and compares: an hour or more
	@exec .venv/bin/python -m bench.stress

lab: .venv/made ## JupyterLab on notebooks/
	@JUPYTER_PATH="$$PWD/.venv/share/jupyter$${JUPYTER_PATH:+:$$JUPYTER_PATH}" exec .venv/bin/jupyter lab \
	    --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks \
	    $(if $(ROOT_USER),--allow-root)

plan: .venv/made ## hours, money, bytes and weights of PROFILE, or of ONLY; runs nothing
	@exec .venv/bin/python -m tdbook plan \
	    $(call given,PROFILE OUT ONLY TOKENS TOKENIZER TEACHER SET DEVICE PRICE_PER_HOUR)

doctor: .venv/made ## can this machine run PROFILE: a line each, two real steps of every shape
	@exec .venv/bin/python -m tdbook doctor $(call given,PROFILE OUT ONLY TOKENS TOKENIZER TEACHER SET)

report: .venv/made ## write every page of a run folder (OUT=, or that of PROFILE) again
	@exec .venv/bin/python -m tdbook report $(FOLDER)

compare: .venv/made ## one page on all runs of OUT=, or of OUT="one other": filter, curves, differences
	@exec .venv/bin/python -m tdbook compare $(FOLDER)

publish: .venv/made ## copy what may be shown of a run folder to outputs/published/, for git
	@exec .venv/bin/python -m tdbook publish $(FOLDER) $(if $(value NAME),"$$TYPED_NAME")

zip: .venv/made ## pack the reports of a run folder into one archive, for mail
	@exec .venv/bin/python -m tdbook zip $(FOLDER)

export: .venv/made ## MODEL=folder as GGUF files, run in llama.cpp, to ship: exports/<model>/
	@exec .venv/bin/python -m tdbook export $(call given,MODEL OUT TOKENS)

chat: .venv/made ## go on with what you type, or answer in turns: MODEL=folder or a .gguf file
	@exec .venv/bin/python -m tdbook chat $(call given,MODEL SEGMENTER)

page: .venv/made .wllama/made ## one HTML file with MODEL="one [other]" inside: type in any browser, offline, on a phone
	@exec .venv/bin/python -m tdbook page $(call given,MODEL OUT)

clean-cache: .venv/made ## remove the kept targets of the teacher of a run folder (OUT=, or that of PROFILE)
	@exec .venv/bin/python -m tdbook clean-cache $(FOLDER)

clean: ## remove the environment and all caches; outputs/ stays
	@test ! -e .venv/made || rm -rf .venv  # not one that somebody made otherwise
	rm -rf .snakemake .wllama .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A CUDA torch of the calling Python is kept and used; elsewhere the CPU build of 2.13.0 comes first,
# since a torch that pip resolves by itself may be several GB.
.venv/made: pyproject.toml
	@test -x .venv/bin/python || echo "setting up .venv, once: a few minutes"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is older than 3.11: make $(MAKECMDGOALS) PYTHON=path/of/a/newer/one"; exit 1; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv \
	    $$($(PYTHON) -c 'import torch; print("--system-site-packages" * bool(torch.version.cuda))' 2>/dev/null) || \
	    { test ! -e .venv/pyvenv.cfg || rm -rf .venv; echo "no venv module: apt-get install python3-venv, then again"; exit 1; }
	@.venv/bin/python -c 'import torch' 2>/dev/null || $(PIP) torch==2.13.0
	@$(PIP) -e '.[segment]'
	@$(COMPILE)
	@mkdir -p .venv/share/jupyter/lab/settings
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' \
	    > .venv/share/jupyter/lab/settings/overrides.json
	@touch $@

# The judges in the tests: transformers, peft, a browser's driver, pytest, …
.venv/tested: .venv/made
	@$(PIP) -e '.[test]'
	@$(COMPILE)
	@touch $@

# llama.cpp for browsers, which `make page` puts into its pages: npm checks its hash, and runs nothing.
.wllama/made: tdbook/report/wllama/package-lock.json
	@command -v npm >/dev/null || \
	    { echo "no npm here, which fetches llama.cpp for browsers: get Node.js (nodejs.org, or apt-get install npm), then again"; exit 1; }
	@mkdir -p .wllama && cp tdbook/report/wllama/*.json .wllama/
	@cd .wllama && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1 >/dev/null || \
	    { echo "npm could not fetch @wllama/wllama (above, why): with a network, or npm's registry, again"; exit 1; }
	@touch $@

# What the tests need from Debian: a browser that can show Telugu, and a compiler; and from npm.
.PHONY: browser
browser:
	@command -v chromium >/dev/null && command -v g++ >/dev/null || \
	    { test -n '$(APT)' && apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends chromium fonts-lohit-telu g++; } \
	    >/dev/null 2>&1 || echo "no chromium or g++ here: apt-get install chromium fonts-lohit-telu g++"
	@$(MAKE) -s .wllama/made || true  # without it the tests of the page that holds a model are skipped
