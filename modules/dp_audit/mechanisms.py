"""Mechanisms whose privacy is known: what an audit should find, and what it must not.

Each maps the memberships of m canaries to one score for each, larger = more likely a member, along the last axis,
so that leading axes are independent runs. A user's own mechanism has the same form: `(member, rng) -> scores`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray as Array
from scipy.special import expit

Bits = Bool[Array, "*runs m"]
Scores = Shaped[Array, "*runs m"]
Mechanism = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def randomised_response(member: Bits, rng: np.random.Generator, *, epsilon: float) -> Scores:
    """Each bit, kept with probability e^ε / (1 + e^ε), else flipped. (ε, 0)-DP, and an audit can be tight."""
    return (member ^ (rng.random(member.shape) >= expit(epsilon))).astype(float)


def leaky_response(member: Bits, rng: np.random.Generator, *, epsilon: float, delta: float) -> Scores:
    """Randomised response, but each bit is revealed with probability δ, and that is seen: exactly (ε, δ)-DP."""
    answer = np.where(randomised_response(member, rng, epsilon=epsilon) > 0.5, 1.0, -1.0)
    return np.where(rng.random(member.shape) < delta, np.where(member, 2.0, -2.0), answer)


def gaussian(member: Bits, rng: np.random.Generator, *, mu: float) -> Scores:
    """Each bit times μ, plus N(0, 1): μ-GDP."""
    return mu * member + rng.standard_normal(member.shape)


def laplace(member: Bits, rng: np.random.Generator, *, epsilon: float) -> Scores:
    """Each bit plus Laplace noise of scale 1 / ε: (ε, 0)-DP."""
    return member + rng.laplace(scale=1 / epsilon, size=member.shape)


# --- not auditable in one run (Keinan, Shenfeld & Ligett 2025, https://arxiv.org/abs/2503.07199): bounds are loose


def all_or_nothing(member: Bits, rng: np.random.Generator, *, p: float) -> Scores:
    """Everything with probability p, else nothing: (0, p)-DP, and without δ not private at all."""
    everything = rng.random((*member.shape[:-1], 1)) < p
    return np.where(everything, member, 0.5)


def name_and_shame(member: Bits, rng: np.random.Generator) -> Scores:
    """One random canary's bit: (0, 1/m)-DP, and without δ not private at all."""
    m = member.shape[-1]
    named = np.arange(m) == rng.integers(m, size=(*member.shape[:-1], 1))
    return np.where(named, member, 0.5)


def xor(member: Bits, rng: np.random.Generator) -> Scores:
    """Whether the number of members is odd, for every canary: not private, yet no single bit can be guessed."""
    return np.broadcast_to(member.sum(axis=-1, keepdims=True) % 2, member.shape).astype(float)
