"""What a DP-SGD training costs in (epsilon, delta): the PRV accountant of Opacus (Gopi, Lee & Wutschitz 2021).

Opacus is imported inside: it takes seconds, and puts a handler on the root logger, which is taken off again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from core.errors import UserError

log = logging.getLogger(__name__)

LARGE = 60.0
PRECISION = 1e-3  # relative, of a noise multiplier found for a target epsilon


@dataclass(frozen=True)
class Mechanism:
    """One training as its privacy sees it: `steps` releases of clipped Poisson sums with noise."""

    sampling_rate: float  # chance of each record to be in a batch, each time anew
    steps: int
    noise_multiplier: float  # standard deviation of the noise, in units of max_grad_norm
    max_grad_norm: float


@cache
def epsilon(noise_multiplier: float, sampling_rate: float, steps: int, delta: float) -> float:
    """An upper bound of epsilon at `delta` of that many steps of the Poisson-subsampled Gaussian mechanism.

    For the adding or removing of one record. inf without noise. Without subsampling it is the exact value of a
    Gaussian mechanism (Balle & Wang 2018). Above `LARGE`, where PRV takes minutes, the Rényi accountant's.
    """
    if noise_multiplier == 0:
        return math.inf
    if sampling_rate == 1:
        return gaussian_epsilon(math.sqrt(steps) / noise_multiplier, delta)
    with quiet_import():
        from opacus.accountants import PRVAccountant, RDPAccountant
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(noise_multiplier, sampling_rate, steps)]
    # Both warn of overflows in the tails that they cut off, and of orders at the end of their list.
    with warnings.catch_warnings(action="ignore"), np.errstate(all="ignore"):
        bound = float(rdp.get_epsilon(delta))
        if bound > LARGE:
            log.info("epsilon %.3g by the Rényi accountant: PRV is not asked above %g", bound, LARGE)
            return bound
        try:
            return min(bound, float(prv.get_epsilon(delta)))
        except (RuntimeError, ValueError) as error:
            log.info("epsilon %.3g by the Rényi accountant: PRV gave up (%s)", bound, error)
            return bound


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at `delta` of a Gaussian mechanism of sensitivity / standard deviation `mu`, exactly.

    Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) = delta, solved by bisection in logarithms.
    """
    from scipy.special import log_ndtr

    def log_delta(eps: float) -> float:
        first, second = log_ndtr(mu / 2 - eps / mu), eps + log_ndtr(-mu / 2 - eps / mu)
        return first + math.log1p(-math.exp(min(second - first, -1e-300)))

    low, high = 0.0, 1.0
    if log_delta(low) <= math.log(delta):
        return 0.0
    while log_delta(high) > math.log(delta):
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if log_delta(middle) > math.log(delta) else (low, middle)
    return high


@cache
def noise_multiplier_for(target_epsilon: float, sampling_rate: float, steps: int, delta: float) -> float:
    """The least noise multiplier, to `PRECISION`, whose epsilon does not exceed the target."""

    def too_little(noise: float) -> bool:
        return epsilon(noise, sampling_rate, steps, delta) > target_epsilon

    low, high = 0.0, 1.0
    while too_little(high):
        low, high = high, 2 * high
        if high > 1e4:
            raise UserError(f"no noise multiplier below 10,000 gives epsilon {target_epsilon:g} at delta {delta:g}")
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if too_little(middle) else (low, middle)
    return high


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """The root logger leaves as it came: what an import puts on it would print every line twice."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
