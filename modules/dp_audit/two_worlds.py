"""Bounds from two worlds: n1 independent runs with the canary, n0 without, one guess for each run.

Clopper-Pearson is provable (Jagielski et al. 2020; Nasr et al. 2021); the Gaussian bound (Nasr et al. 2023,
https://arxiv.org/abs/2302.07956) assumes the family; the Bayesian interval (Zanella-Béguelin et al. 2023,
https://arxiv.org/abs/2206.05199) is credible, not a bound. The rule that guesses was fixed before these runs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincinv, ndtri

from core.metrics import clopper_pearson
from core.types import EpsilonBound
from modules.dp_audit.bounds import ANY, GAUSSIAN, checked_delta, error_of
from modules.dp_audit.f_dp import epsilon_of_mu

NODES = 1024  # of the quadrature over the false-positive rate


def two_worlds(tp: int, n1: int, fp: int, n0: int, *, delta: float, level: float = 0.95) -> EpsilonBound:
    """ε ≥ log((rate - δ) / opposite rate), of positives or of negatives, from Clopper-Pearson limits.

    Each limit has half of the error. Both logarithms rest on the same two limits, so the larger is free.
    tp of n1 runs with the canary and fp of n0 without it were guessed to have it.
    """
    _counts(tp, n1, fp, n0)
    return EpsilonBound(
        eps=float(clopper_pearson_epsilon(tp, n1, fp, n0, delta=delta, level=level)),
        estimator="two worlds",
        family=ANY,
        largest=float(clopper_pearson_epsilon(n1, n1, 0, n0, delta=delta, level=level)),
        **_facts(tp, n1, fp, n0, delta, level),
    )


def gaussian_two_worlds(tp: int, n1: int, fp: int, n0: int, *, delta: float, level: float = 0.95) -> EpsilonBound:
    """ε at `delta` of the Gaussian mechanism with the least μ that the Clopper-Pearson limits allow.

    μ ≥ Φ⁻¹(1 - FPR upper) - Φ⁻¹(FNR upper). Only for mechanisms of the Gaussian family: on the Laplace mechanism
    or on randomised response it claims several times their ε.
    """
    _counts(tp, n1, fp, n0)
    return EpsilonBound(
        eps=float(epsilon_of_mu(mu_lower(tp, n1, fp, n0, level=level), delta)),
        estimator="Gaussian DP, two worlds",
        family=GAUSSIAN,
        largest=float(epsilon_of_mu(mu_lower(n1, n1, 0, n0, level=level), delta)),
        **_facts(tp, n1, fp, n0, delta, level),
    )


def mu_lower(tp: ArrayLike, n1: int, fp: ArrayLike, n0: int, *, level: float = 0.95) -> np.ndarray:
    """Lower limit of μ of a Gaussian mechanism, at least 0. Broadcasts over counts."""
    fpr, fnr = _upper_limits(tp, n1, fp, n0, level)
    return np.asarray(np.maximum(-ndtri(fpr) - ndtri(fnr), 0.0))  # a limit of 1 makes it -inf: 0


def bayesian(tp: int, n1: int, fp: int, n0: int, *, delta: float, level: float = 0.95) -> EpsilonBound:
    """Equal-tailed credible interval of the least ε that the two error rates allow; `eps` is its lower end.

    Jeffreys priors: FNR ~ Beta(1/2 + FN, 1/2 + TP) and FPR ~ Beta(1/2 + FP, 1/2 + TN), independent. Narrower than
    Clopper-Pearson, and no guarantee: where counts are 0 the prior decides.
    """
    _counts(tp, n1, fp, n0)
    error = error_of(level)
    return EpsilonBound(
        eps=posterior_quantile(error / 2, tp, n1, fp, n0, delta),
        upper=posterior_quantile(1 - error / 2, tp, n1, fp, n0, delta),
        estimator="Bayesian, two worlds",
        family=ANY,
        largest=posterior_quantile(error / 2, n1, n1, 0, n0, delta),
        kind="credible",
        **_facts(tp, n1, fp, n0, delta, level),
    )


def posterior_quantile(u: float, tp: int, n1: int, fp: int, n0: int, delta: float) -> float:
    """The ε below which a share `u` of the posterior lies; 0 where that share allows ε = 0."""
    fpr = betaincinv(0.5 + fp, 0.5 + n0 - fp, (np.arange(NODES) + 0.5) / NODES)

    def below(eps: float) -> float:
        """Posterior probability of error rates that (eps, delta)-DP allows: FNR between two curves of the FPR."""
        e = np.exp(eps)
        least = np.clip(np.maximum(1 - delta - e * fpr, (1 - delta - fpr) / e), 0.0, 1.0)
        most = np.clip(np.minimum(1 - (fpr - delta) / e, delta + e * (1 - fpr)), 0.0, 1.0)
        a, b = 0.5 + n1 - tp, 0.5 + tp
        return float(np.maximum(betainc(a, b, most) - betainc(a, b, least), 0.0).mean())

    low, high = 0.0, 1.0
    if below(0.0) >= u:
        return 0.0
    while below(high) < u:
        low, high = high, 2 * high
        if high > 500:
            return high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < u else (low, middle)
    return low


def clopper_pearson_epsilon(
    tp: ArrayLike, n1: int, fp: ArrayLike, n0: int, *, delta: float, level: float
) -> np.ndarray:
    """ε of `two_worlds`. Broadcasts over counts."""
    fpr, fnr = _upper_limits(tp, n1, fp, n0, level)
    checked_delta(delta)
    ratios = np.maximum((1 - fnr - delta) / fpr, (1 - fpr - delta) / fnr)
    return np.asarray(np.log(np.maximum(ratios, 1.0)))


def _upper_limits(tp: ArrayLike, n1: int, fp: ArrayLike, n0: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the false-positive and false-negative rates, each with half of the error."""
    tp, fp = np.broadcast_arrays(np.asarray(tp), np.asarray(fp))
    _, fpr = clopper_pearson(fp, np.full(fp.shape, n0), level=level)
    _, fnr = clopper_pearson(n1 - tp, np.full(tp.shape, n1), level=level)
    return np.asarray(fpr), np.asarray(fnr)


def _counts(tp: int, n1: int, fp: int, n0: int) -> None:
    if not (0 <= tp <= n1 and 0 <= fp <= n0 and n1 >= 1 and n0 >= 1):
        raise ValueError(f"two worlds need runs in each and counts within them, got {tp} of {n1} and {fp} of {n0}")


def _facts(tp: int, n1: int, fp: int, n0: int, delta: float, level: float) -> dict:
    return {
        "delta": delta,
        "level": level,
        "m": n1 + n0,
        "r": n1 + n0,
        "right": tp + n0 - fp,
        "guesses": "one for each run, by a rule fixed before",
        "analyses": 1,
    }
