.DEFAULT_GOAL := help
UV_RUN = uv run --group test --group lint
OLDEST = build/oldest

.PHONY: help check docs lint test fast nightly chaos screenshots bench deploy-local

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

check: lint test  ## All that must pass before a commit is shared.

lint:  ## Style and types.
	$(UV_RUN) ruff check .
	$(UV_RUN) ruff format --check .
	$(UV_RUN) mypy

test:  ## The whole suite, as the README has it.
	uv run --group test pytest -n 2

fast:  ## The tests that start no real process.
	uv run --group test pytest -n 2 -m "not slow"

nightly:  ## The whole suite with many more generated cases, then on the oldest Flower and MLflow.
	uv run --group test pytest --hypothesis-profile nightly -n 2
	uv venv --no-config --clear $(OLDEST)
	uv pip install --no-config --python $(OLDEST) -e . --group test --group app "flwr==1.40.*" "mlflow==3.16.*"
	PATH="$(CURDIR)/$(OLDEST)/bin:$$PATH" $(OLDEST)/bin/pytest -n 2

chaos:  ## Kills, damage, lost replies, full disks and attacks, in their long forms.
	uv run --group test pytest -m chaos --hypothesis-profile nightly -n 2
	PYTHONPATH=tests uv run --group test --with atheris==3.0.0 python -m fuzz

screenshots:  ## The status page's pictures in docs/, anew.
	FL_APP_SCREENSHOTS=docs uv run --group test pytest tests/api/test_page_browser.py

docs:  ## The documentation site, into site/; a broken link or anchor is an error.
	NO_MKDOCS_2_WARNING=1 PYTHONWARNINGS=ignore uv run --group docs mkdocs build --strict

bench:  ## All benchmarks: one table here, its rows and a plot in benchmarks/results.
	uv run --group test python -m benchmarks.run_all $(ARGS)

deploy-local:  ## A deployment on this machine, until Ctrl-C; options in ARGS, as in docs/deployment.md.
	uv run --extra deploy fl-app deploy-local $(ARGS)
