"""CLIPN's ablations on glyphs: python benchmarks/clipn_ablation.py FOLDER. Train each variant with `oodbench train`,
score it with `oodbench run`, and print the table of docs/reproducing.md. Variants in FOLDER are not trained again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# name -> hyper-parameters that training fixes
VARIANTS = {
    "all three losses, 16 offsets and their mean": {},
    "ITBO without TSO": {"tso": 0.0},
    "yes term of ITBO alone": {"no": 0.0, "tso": 0.0},
    "no term of ITBO alone": {"yes": 0.0, "tso": 0.0},
    "TSO alone": {"yes": 0.0, "no": 0.0},
    "1 offset": {"offsets": 1},
    "16 offsets, the mean not drawn": {"mean_draw": False},
    "hand-crafted prompts": {"prompt": "handcrafted"},
}
SCHEDULE = ("--batch-size", "512", "--lr", "1e-3", "--epochs", "2")


def main() -> None:
    """Train, score, print."""
    folder = Path(sys.argv[1])
    print("| variant | command | ATD | CTW |\n|---|---|---|---|")
    for number, (name, values) in enumerate(VARIANTS.items()):
        settings = [f"clipn.{key}={str(value).lower() if value is True else value}" for key, value in values.items()]
        sets = [part for setting in settings for part in ("--set", setting)]
        file, out = folder / f"{number}.safetensors", folder / f"rows-{number}"
        quiet = ("--tracking-uri", "none")
        call("oodbench", "train", "clipn", *sets, *SCHEDULE, "--output", str(file), *quiet)
        rules = "clipn[rule=atd],clipn[rule=ctw]"
        call("oodbench", "run", "--methods", rules, "--weights", f"clipn={file}", "--results", str(out), *quiet)
        rows = [json.loads(path.read_text()) for path in out.rglob("*.json")]
        cells = {row["parameters"]["rule"]: row["ood"] for row in rows}
        text = [
            "/".join(
                f"{100 * sum(one[metric] for one in cells[rule]) / len(cells[rule]):.2f}"
                for metric in ("auroc", "fpr95")
            )
            for rule in ("atd", "ctw")
        ]
        print(f"| {name} | `{' '.join(sets) or 'default'}` | {text[0]} | {text[1]} |", flush=True)


def call(*arguments: str) -> None:
    """Run a command; exit with its output if it fails."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
