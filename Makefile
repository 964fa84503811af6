# check: what to run before every commit (about five minutes on two cores). test: everything; CI runs lint and test.
export OMP_WAIT_POLICY := PASSIVE
# Some environments forbid it; compiled tests are kept from one run to the next.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: lint check test docs site figures reference glyphs glyphs-weights ablation bench

lint:
	ruff format --check .
	ruff check .
	mypy
	python docs/generate.py --check

check: lint
	python -m pytest -q -n 2 --dist loadfile -m "not slow"

test:
	python -m pytest -n 3 --dist loadfile --durations=20

# Rewrite the generated parts of README.md and docs/.
docs:
	python docs/generate.py

# The pages of docs/ as a site, in build/site; any warning fails. The variable turns off an advertisement.
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# The images of docs/ and README.md, from the project's own results; Chromium takes the picture of the HTML page.
figures:
	python docs/draw_figures.py

# Run the embedded benchmark again and keep its results as the project's own. Commit first: results name the commit.
reference:
	OODBENCH_STORE=$$(mktemp -d) oodbench run --results results/.reference --tracking-uri none
	rm -rf results/reference/glyphs && mkdir -p results/reference
	mv results/.reference/runs/glyphs results/reference/glyphs && rm -r results/.reference
	python docs/generate.py

# Train the embedded encoder again, in two stages (docs/glyphs.md; about 35 minutes on two busy cores).
glyphs:
	mkdir -p build
	python -m tools.glyphs.train --output build/glyphs-stage1.safetensors --smooth 0 --steps 2400
	python -m tools.glyphs.train --output oodbench/data/glyphs/encoder.safetensors --resume build/glyphs-stage1.safetensors \
	  --smooth 0.3 --rate 1.2e-3 --warmup 50 --steps 708

# Train CLIPN and ZOC for the embedded encoder with their default recipes, and keep what is needed of them (about ten
# minutes on two cores). Commit first: the files name the commit.
glyphs-weights:
	oodbench train clipn --output build/clipn.safetensors --tracking-uri none
	python -m tools.glyphs.pack build/clipn.safetensors oodbench/data/glyphs/clipn.safetensors
	oodbench train zoc --output build/zoc.safetensors --tracking-uri none
	python -m tools.glyphs.pack build/zoc.safetensors oodbench/data/glyphs/zoc.safetensors

# CLIPN's ablations on glyphs: the table of docs/reproducing.md.
ablation:
	python benchmarks/clipn_ablation.py build/ablation

# Speed, as ratios measured side by side, one table; writes results/speed/ (some twenty minutes; docs/performance.md).
bench:
	python benchmarks/all.py
