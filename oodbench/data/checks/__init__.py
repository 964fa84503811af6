"""The checks of `oodbench datasets check`: problems of image sets, found before anything is computed on them."""
