"""Remarks: what the marks in a table mean, the same in every format."""

ALIKE = (
    "not distinguishable from the best of its column (paired tests on the same images: DeLong for AUROC, bootstrap for"
    " the others; corrected for all pairs, level 0.05)."
)
BEYOND = "difference beyond the tolerance."
