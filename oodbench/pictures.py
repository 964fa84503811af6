"""The old name of oodbench.report.figures: works, with a DeprecationWarning."""

from __future__ import annotations

import warnings

from oodbench.report.figures import KINDS, Heading
from oodbench.report.figures import Plot as Picture
from oodbench.report.figures import plots as pictures

__all__ = ["KINDS", "Heading", "Picture", "pictures"]

warnings.warn("oodbench.pictures is now oodbench.report.figures", DeprecationWarning, stacklevel=2)
