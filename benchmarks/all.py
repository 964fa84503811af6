"""All benchmarks of speed one after the other, and one table of ratios: python benchmarks/all.py [NAME ...].

Each runs in a process of its own with one thread, but `encoding` with all cores; a few minutes on two idle cores.
Figures lie in results/speed/ as JSON; when all have run, the table goes into docs/performance.md, which explains it.
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
NAMES = ("metrics", "streaming", "scoring", "zoc", "growth", "commands", "clipn_training", "encoding")


def main() -> None:
    """Run, then print all tables as one."""
    names = sys.argv[1:] or NAMES
    rows = []
    failed = []
    for name in names:
        sys.stderr.write(f"{name} ...\n")
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        if name != "encoding":
            environment |= {"OMP_NUM_THREADS": "1"}
        call = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            failed.append(f"{name} failed:\n{done.stderr}")
            continue
        rows += [Row(**one) for one in json.loads((FOLDER / f"{name}.json").read_text())["rows"]]
    text = table(rows)
    sys.stdout.write(text + "\n")
    if failed:
        raise SystemExit("\n".join(failed))
    if not sys.argv[1:]:
        page = PAGE.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
