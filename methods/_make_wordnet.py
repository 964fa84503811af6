"""Write _wordnet30.txt, NegLabel's shipped word list, from WordNet 3.0.

python -m oodbench_methods._make_wordnet [FOLDER]

FOLDER holds WordNet's data.noun and data.adj: /usr/share/wordnet of Debian's package wordnet-base (the default).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    from ._wordnet import SHIPPED, distinct, from_database, written

    files = from_database(Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/wordnet"))
    Path(__file__).with_name(SHIPPED).write_text(written(files), encoding="utf-8")
    for name, words in files.items():
        sys.stdout.write(f"{len(words):7,} {name}\n")
    mixed = distinct(files)
    total = sum(map(len, files.values()))
    sys.stdout.write(
        f"{total:,} lines, {len(mixed.nouns):,} nouns + {len(mixed.adjectives):,} adjectives = "
        f"{len(mixed.nouns) + len(mixed.adjectives):,} distinct words\n"
    )
