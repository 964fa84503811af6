"""The checks behind `oodbench datasets check`: what is wrong with image sets before anything is computed on them."""
