"""Start of commands against a bare Python: python benchmarks/commands.py [--rows 2000]. CPU time of the processes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from measure import row, side_by_side, write

from oodbench.results import from_json

ROW = Path(__file__).parents[1] / "results" / "reference" / "glyphs" / "glyphs" / "mcm.json"
LIMITS = {"--help": 0.5, "methods": 0.5, "report": 2.0}  # seconds of the wall on an idle machine


def children() -> float:
    """Return the CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def oodbench(*arguments: str) -> None:
    call("-c", "from oodbench.cli import main; main(prog_name='oodbench')", *arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with TemporaryDirectory() as folder:
        (Path(folder) / "runs").mkdir()
        one = from_json(ROW.read_text())
        for i in range(asked.rows):  # as many encoders as in a large sweep, all rows different
            encoder = {**one.encoder, "name": f"encoder {i // 10}"}
            label = f"mcm[temperature={1 + i % 10}]"
            parameters = {**one.parameters, "temperature": float(1 + i % 10)}
            new = dataclasses.replace(one, label=label, parameters=parameters, encoder=encoder)
            (Path(folder) / "runs" / f"{i:05}.json").write_text(new.to_json())
        found = side_by_side(
            {
                "python -c pass": lambda: call("-c", "pass"),
                "--help": lambda: oodbench("--help"),
                "methods": lambda: oodbench("methods"),
                "report": lambda: oodbench("report", "--results", folder, "--format", "csv"),
            },
            "python -c pass",
            asked.rounds,
            children,
        )
    rows = [
        row(
            f"oodbench {name}" + (f", {asked.rows:,} rows" if name == "report" else ""),
            "python -c pass",
            ratio,
            note=f"{ratio.seconds:.2f} s of CPU here; target < {LIMITS[name]} s: "
            + ("met" if ratio.seconds < LIMITS[name] else "missed"),
        )
        for name, ratio in found.items()
    ]
    write("commands", rows, "CPU time of child processes")


if __name__ == "__main__":
    main()
