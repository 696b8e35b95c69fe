"""Range functions for RaMIA, registered in `RANGES`: an import here is what makes a name known in YAML."""

from dataset.ranges import geometric, l2, missing_values, word_replace
from dataset.ranges.base import RANGES, Range, SettingError, Together, bound, rows, sample_all

__all__ = [
    "RANGES",
    "Range",
    "SettingError",
    "Together",
    "bound",
    "geometric",
    "l2",
    "missing_values",
    "rows",
    "sample_all",
    "word_replace",
]
