"""Help of the commands: options in groups, examples, commands in the order of use, and shell completion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

# Heading -> parameter names of the command functions. Options that are not listed are in the last group. An option
# means the same in all commands.
OPTION_GROUPS: Mapping[str, str] = {
    "Methods": "methods settings sweeps templates plugins weights",
    "Images": "id_ ood calibration calibration_limit shots shot_seed classes clean_names data limit allow_partial "
    "skip_missing on_error captions crops augment",
    "Encoder": "encoder resize precision batch_size keep_patches device workers",
    "Test streams": "stream_order stream_seeds stream_batch stream_ratio",
    "Training": "epochs steps lr betas eps weight_decay warmup chunk checkpoint_every max_steps restart",
    "Metrics": "at95 aupr bootstrap",
    "Selection": "sets encoders ids metrics sort top quotes compare explain check uri experiment",
    "Layout": "form style decimals percent transpose group intervals seeds stream_parts tests ours rename long",
    "LaTeX": "standalone caption label cite bib",
    "Figures": "kinds width with_figures",
    "Submission": "handle authors paper code licence hardware not_tuned_on_test_data replace checked workflow",
    "Results": "results output store shared strict tracking_uri events",
    "Several GPUs or machines": "ray actors gpus_per_actor num_workers",
    "Other options": "",
}
FEW = 12  # up to this many options need no groups
SECTIONS: Mapping[str, str] = {
    "Compare methods": "run report diff leaderboard submit",
    "Data, methods, encoders": "datasets benchmarks get methods encoders",
    "Train and use": "train weights score explain register",
    "Scores of other code": "import metrics",
    "Upkeep": "store sync",
}  # the commands of `oodbench --help`, in the order of use; commands that are not listed come last


def examples(*lines: str) -> str:
    """Return an epilog with example commands that click does not wrap."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


class Command(click.Command):
    """A command whose help has its options in groups if there are many."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each group under its heading."""
        options = (p for p in self.get_params(ctx) if isinstance(p, click.Option))  # arguments are in the usage line
        records = {p.name or "": record for p in options if (record := p.get_help_record(ctx)) is not None}
        if len(records) <= FEW:
            super().format_options(ctx, formatter)
            return
        left = dict(records)
        for heading, names in OPTION_GROUPS.items():
            wanted = names.split() if names else list(left)
            rows = [left.pop(name) for name in wanted if name in left]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class Sections(click.Group):
    """A group whose help lists its commands in sections, in the order of use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of use."""
        ordered = [name for names in SECTIONS.values() for name in names.split() if name in self.commands]
        return [*ordered, *(name for name in self.commands if name not in ordered)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, each section under its heading."""
        shown = {name: self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden}
        limit = formatter.width - 6 - max(map(len, shown), default=0)
        left = dict(shown)
        for heading, names in (*SECTIONS.items(), ("Other commands", " ".join(shown))):
            rows = [(name, left.pop(name).get_short_help_str(limit)) for name in names.split() if name in left]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


class OneOf(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs only
    """One of several words, shown in the help and completed by shells; the command itself checks the value."""

    name = "text"

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return the words, as click shows its own choices."""
        return f"[{'|'.join(self.words)}]"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the words that start with the typed text."""
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Names(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs only
    """Names that a shell completes, also after a comma."""

    name = "text"

    def __init__(self, known: Callable[[], Iterable[str]], several: bool = True) -> None:
        self._known, self._several = known, several

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that start with the text after the last comma, preceded by the text before it."""
        before, comma, last = incomplete.rpartition(",") if self._several else ("", "", incomplete)
        return [CompletionItem(f"{before}{comma}{name}") for name in sorted(self._known()) if name.startswith(last)]


def method_names(groups: bool = True) -> list[str]:
    """Return the names of methods, and those of the groups of --methods."""
    from oodbench.method import registry

    return [*registry.methods(), *(registry.NAMED_GROUPS if groups else ())]


def group_names() -> list[str]:
    """Return the names of the groups of --methods."""
    from oodbench.method import registry

    return list(registry.NAMED_GROUPS)


def benchmark_names() -> list[str]:
    """Return the names of benchmarks."""
    from oodbench.data import catalog

    return list(catalog.benchmarks())


def dataset_names() -> list[str]:
    """Return the names of image sets."""
    from oodbench.data import catalog

    return list(catalog.datasets())


def set_names() -> list[str]:
    """Return the names of benchmarks and image sets."""
    return [*dict.fromkeys((*benchmark_names(), *dataset_names()))]


def release_names(kind: str) -> list[str]:
    """Return the names of released weights or word lists, and of the methods that they are for."""
    from oodbench.data.released import releases

    found = releases(kind).values()
    return [*dict.fromkeys((*(one.method for one in found), *(one.name for one in found)))]


# The types of an argument or option that is one name.
METHOD_NAME = Names(functools.partial(method_names, groups=False), several=False)
SET_NAME = Names(set_names, several=False)
BENCHMARK_NAME = Names(benchmark_names, several=False)
DATASET_NAME = Names(dataset_names, several=False)


class EncoderNames(Names):
    """Architectures, the encoders that benchmarks name, and after a slash the tags of an architecture."""

    def __init__(self, several: bool = True) -> None:
        super().__init__(self._architectures, several)

    @staticmethod
    def _architectures() -> list[str]:
        from oodbench.data import catalog
        from oodbench.encoder.card import EMBEDDED
        from oodbench.encoder.names import architectures

        named = {one.encoder for one in catalog.benchmarks().values() if one.encoder}
        return [EMBEDDED, *named, *(f"{name}/" for name in architectures())]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that start with the typed text; tags are read from open_clip, which takes seconds."""
        from oodbench.encoder.names import tags

        before, comma, last = incomplete.rpartition(",") if self._several else ("", "", incomplete)
        architecture, slash, tag = last.partition("/")
        if not slash:
            return super().shell_complete(ctx, param, incomplete)
        found = (name for name in sorted(tags(architecture)) if name.startswith(tag))
        return [CompletionItem(f"{before}{comma}{architecture}/{name}") for name in found]


def cut(rows: Sequence[Sequence[str]], width: int) -> list[tuple[str, ...]]:
    """Shorten the widest columns of a table, except the first, until a line fits the width."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while first + sum(widths) + 2 * len(widths) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    widths = [first, *widths]
    return [
        tuple(text if len(text) <= w else f"{text[: w - 1]}…" for text, w in zip(row, widths, strict=True))
        for row in rows
    ]


def as_json(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the rows of a list as JSON."""
    import json

    return json.dumps(list(rows), indent=1, ensure_ascii=False)
