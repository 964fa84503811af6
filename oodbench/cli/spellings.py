"""Names of commands and options in earlier versions. Each is refused, and the error shows the command of today."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from oodbench.errors import redact

# Command -> option of an earlier version -> what stands in its place.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "run": {"--out": "--results"},
    "train": {"--out": "--output", "--batch": "--batch-size"},
    "score": {"--out": "--output"},
    "explain": {"--json": "--format json"},
    "report": {
        "--sets": "--ood",
        "--figures": "--format figures --output",
        "--pictures": "--with-figures",
        "--no-pictures": "--no-figures",
    },
    "weights": {"--release": "--output"},
    "datasets check": {"--json": "--output"},
}
COMMANDS: Mapping[str, str] = {"check": "methods check"}
# `oodbench methods neglabel --negatives` became a command of its own.
NEGATIVES, NEGATIVES_COMMAND = "--negatives", "methods negatives"


def refusal(command: str, arguments: Sequence[str]) -> str:
    """Return the error for arguments with names of an earlier version, "" if there are none.

    `command` is what click understood before it failed, without the program: "train", "datasets check", "".
    """
    renamed: dict[str, str] = {}
    if arguments and not command and arguments[0] in COMMANDS:
        renamed[f"oodbench {arguments[0]}"] = f"oodbench {COMMANDS[arguments[0]]}"
        current = [*COMMANDS[arguments[0]].split(), *arguments[1:]]
    elif command in ("methods", "methods show") and NEGATIVES in arguments:
        renamed[f"oodbench methods {NEGATIVES}"] = f"oodbench {NEGATIVES_COMMAND}"
        others = [word for word in arguments if word not in (NEGATIVES, "methods", "show")]
        current = [*NEGATIVES_COMMAND.split(), *others]
    else:
        known = OPTIONS.get(command, {})
        current = []
        for word in arguments:
            option, equals, value = word.partition("=")
            if option in known:
                renamed[option] = known[option]
                current += known[option].split()
                current[-1] += equals + value
            else:
                current.append(word)
    changes = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
    return redact(f"{changes}; write\n  {shlex.join(['oodbench', *current])}") if renamed else ""


def config_refusal(command: str, key: str) -> str:
    """Return the error for a key of a --config file that had this name in an earlier version, "" for any other."""
    new = OPTIONS.get(command, {}).get(f"--{key.replace('_', '-')}", "")
    return f"'{key}' is now '{new.lstrip('-')}'; write {new.lstrip('-')} = ..." if new else ""
