"""Functions of all benchmarks: parts timed in alternation, their ratios with spread, and rows as JSON.

Parts alternate, A B A B, and each is compared with the base of the same round, so that other work on the machine
affects both equally. The clock is this process's CPU time, which excludes other processes, or the wall clock if several
cores or processes are measured.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("OODBENCH_SPEED", Path(__file__).parents[1] / "results" / "speed"))
Clock = Callable[[], float]


@dataclass(frozen=True)
class Ratio:
    """The median and spread (10 % to 90 %) of part / base over the rounds, and the part's median seconds."""

    median: float
    low: float
    high: float
    seconds: float

    def inverse(self) -> Ratio:
        """Return base / part."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low, self.seconds)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    what     the measurement and its size
    base     the reference of the ratio
    target   such as "<= 2" or ">= 20"; "" for none
    note     what was scaled down, and other conditions
    """

    what: str
    base: str
    ratio: float
    low: float
    high: float
    target: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def met(self) -> bool | None:
        """Return whether the median meets the target; None without a target."""
        if not self.target:
            return None
        sign, number = self.target.split()
        return self.ratio <= float(number) if sign == "<=" else self.ratio >= float(number)


def row(what: str, base: str, ratio: Ratio, target: str = "", note: str = "") -> Row:
    """Return a line for a measured ratio."""
    return Row(what, base, ratio.median, ratio.low, ratio.high, target, note, ratio.seconds)


def side_by_side(
    parts: Mapping[str, Callable[[], object]], base: str, rounds: int, clock: Clock = time.process_time
) -> dict[str, Ratio]:
    """Return every part's ratio to the base, which runs next to each part in every round."""
    others = [name for name in parts if name != base]
    taken: dict[str, list[float]] = {name: [] for name in parts}
    ratios: dict[str, list[float]] = {name: [] for name in others}

    def seconds(name: str) -> float:
        began = clock()
        parts[name]()
        return clock() - began

    for part in parts.values():
        part()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in others:
                of_base, of_part = seconds(base), seconds(name)
                taken[base].append(of_base)
                taken[name].append(of_part)
                ratios[name].append(of_part / of_base)
    finally:
        gc.enable()
    return {name: Ratio(*_spread(found), statistics.median(taken[name])) for name, found in ratios.items()}


def _spread(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    tenth = len(ordered) // 10
    return statistics.median(ordered), ordered[tenth], ordered[-1 - tenth]


def write(name: str, rows: list[Row], method: str, **about: object) -> None:
    """Print the lines and write them, with the machine and versions, to results/speed/NAME.json."""
    sys.stdout.write(table(rows) + "\n")
    FOLDER.mkdir(parents=True, exist_ok=True)
    about = {"machine": machine(), "device": "cpu", **about}
    kept = {"benchmark": name, "method": method, **about, "rows": [asdict(one) for one in rows]}
    (FOLDER / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """Return the table in Markdown."""
    lines = ["| what | against | ratio | 10-90 % | target | met | note |", "|---|---|---:|---|---|---|---|"]
    for one in rows:
        met = {True: "yes", False: "no", None: ""}[one.met]
        digits = 2 if one.ratio > 0.1 else 4
        spread = f"{one.low:.{digits}f}-{one.high:.{digits}f}"
        ratio = f"{one.ratio:.{digits}f}"
        lines.append(f"| {one.what} | {one.base} | {ratio} | {spread} | {one.target} | {met} | {one.note} |")
    return "\n".join(lines)


def machine() -> dict[str, object]:
    """Return processor, threads and versions, without the name of the machine."""
    found: dict[str, object] = {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()}
    for module in ("numpy", "torch", "open_clip"):
        if module in sys.modules:
            found[module] = sys.modules[module].__version__
    if "torch" in sys.modules:
        found["threads"] = sys.modules["torch"].get_num_threads()
    return found


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    lines = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    known = {key.strip(): value.strip() for key, value in lines.items()}
    wide = "AVX-512" if "avx512f" in known.get("flags", "") else "AVX2" if "avx2" in known.get("flags", "") else ""
    return " ".join(part for part in (known.get("model name", platform.machine()), wide) if part)
