"""Does the fast recipe learn faster? `python -m benchmarks.speedyresnet [--full]`

Test accuracy of a narrow speedyresnet and of `cnn` under `sgd`, on a CPU: trained on random halves of the same data, for
as many epochs, and the cnn also for as many CPU-seconds. Neither augments: mirrored digits are no digits, and
the classes of synthetic_images differ from their mirror images. Learning rates are the best of three (three of each
optimizer) on a half that is not reported.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

import dataset  # noqa: F401  (these fill the registries)
import models
import trainers  # noqa: F401
from benchmarks.side_by_side import header, last_line, one_thread, show
from core.registry import DATASETS, MODELS, TRAINERS
from core.rng import stream
