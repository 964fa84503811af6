"""The command line. Heavy imports happen inside the commands."""

from __future__ import annotations

import click

from oodbench.cli.benchmarks import benchmarks
from oodbench.cli.datasets import datasets
from oodbench.cli.diff import diff
from oodbench.cli.encoders import encoders
from oodbench.cli.explain import explain
from oodbench.cli.get import get
from oodbench.cli.group import MainGroup
from oodbench.cli.import_ import import_
from oodbench.cli.leaderboard import leaderboard
from oodbench.cli.methods import methods
from oodbench.cli.metrics import metrics
from oodbench.cli.report import report
from oodbench.cli.run import run
from oodbench.cli.score import score
from oodbench.cli.store import store
from oodbench.cli.submit import submit
from oodbench.cli.tracking import register, sync
from oodbench.cli.train import train
from oodbench.cli.weights import weights


@click.group(cls=MainGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="oodbench")
def main() -> None:
    """Compare CLIP-based out-of-distribution (OOD) detection methods.

    \b
    oodbench run                                     the core methods on the embedded benchmark, offline
    oodbench get datasets mos                        the datasets of a benchmark, in data/
    oodbench run --methods mcm,energy --id imagenet1k
    oodbench train clipn --encoder ViT-B-16/openai --captions captions.csv
    oodbench report --format latex                   the tables of all results
    """


COMMANDS = (
    run,
    train,
    report,
    leaderboard,
    import_,
    metrics,
    diff,
    submit,
    score,
    explain,
    methods,
    encoders,
    datasets,
    benchmarks,
    get,
    store,
    sync,
    weights,
    register,
)
for command in COMMANDS:
    main.add_command(command)
