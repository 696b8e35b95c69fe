"""Range functions for RaMIA, registered in `RANGES`: an import here is what makes a name known in YAML."""

from dataset.ranges import geometric, l2, missing_values
from dataset.ranges.base import RANGES, Range, SettingError, bound

__all__ = ["RANGES", "Range", "SettingError", "bound", "geometric", "l2", "missing_values"]
