"""Run the speed benchmarks one after the other and print one table of ratios: python benchmarks/all.py [NAME ...].

Each runs in its own process with one thread, except `encoding`, which uses all cores; a few minutes on two idle cores.
The numbers are written to results/speed/ as JSON and the table to docs/performance.md, which explains it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from measure import FOLDER, Row, table

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
NAMES = (
    "metrics",
    "streaming",
    "scoring",
    "posthoc",
    "negrefine",
    "streams",
    "zoc",
    "growth",
    "commands",
    "clipn_training",
    "patches",
    "encoding",
)


def main() -> None:
    """Run the benchmarks and print one table of all results."""
    failed = []
    for name in sys.argv[1:] or NAMES:
        sys.stderr.write(f"{name} ...\n")
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if name != "encoding":
            environment |= {"OMP_NUM_THREADS": "1"}
        call = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(f"{name} failed:\n{done.stderr}")
    kept = [FOLDER / f"{name}.json" for name in NAMES]
    text = table([Row(**one) for path in kept if path.is_file() for one in json.loads(path.read_text())["rows"]])
    sys.stdout.write(text + "\n")
    if failed:
        raise SystemExit("\n".join(failed))
    if "OODBENCH_SPEED" in os.environ:  # numbers in another folder
        return
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
