"""Loaders of image sets, one module per kind of source; each has `load(dataset, data, labelled) -> ImageSet`."""
