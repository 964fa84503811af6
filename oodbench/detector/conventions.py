"""scikit-learn's conventions for outlier detectors besides their scores: parameters, tags, whether one is fitted."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

from oodbench.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from oodbench.detector.engine import Engine


class NotFitted(UserError, ValueError, AttributeError):
    """Something was asked of a detector that only a fitted one knows."""


class OutlierEstimator:
    """An estimator whose constructor's arguments are its parameters; fit() sets `_engine` and `threshold_`."""

    _estimator_type = "outlier_detector"

    _engine: Engine
    threshold_: float | None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of the constructor; they count from the next fit(). UserError for unknown ones."""
        known = self._defaults()
        for name, value in parameters.items():
            if name not in known:
                raise UserError(f"no parameter '{name}'{did_you_mean(name, known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = self._defaults()
        changed = {name: value for name, value in self.get_params().items() if value is not usual[name]}
        shown = ", ".join(f"{name}={_short(value)}" for name, value in changed.items() if value != usual[name])
        return f"{type(self).__name__}({shown})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags("outlier_detector", TargetTags(required=False), input_tags=InputTags(two_d_array=False))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The constructor's arguments with their defaults."""
        return {name: one.default for name, one in inspect.signature(cls).parameters.items()}

    def _fitted(self) -> Engine:
        if not hasattr(self, "_engine"):
            raise NotFitted("this detector is not fitted; call fit(images) first, or Detector.load(folder)")
        return self._engine

    def _threshold(self) -> float:
        self._fitted()
        if self.threshold_ is None:
            raise NotFitted("this detector has no threshold; call fit(images) with ID images, or give threshold=")
        return float(self.threshold_)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
