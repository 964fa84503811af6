"""Where images come from: one file per kind of source, all giving the same `Items` with the same errors."""
