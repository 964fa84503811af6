"""Where images come from: one file per kind of source, all giving the same `ImageSet` with the same errors."""
