"""The checks of `oodbench datasets check`, which find problems of image sets before a run."""
