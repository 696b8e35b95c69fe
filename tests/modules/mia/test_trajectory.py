"""Trajectories: every epoch that tells something new counts, by closed forms; and LiRA where there is one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

import modules.mia  # noqa: F401  (fills the registry)
from core.registry import ATTACKS
from modules.mia.lira import lira
from modules.mia.trajectory import distilled_of, trace_of
from tests.worlds import auc_error, gaussian_world, naive_auc, vector_world

# Members and others part early, and end close together: what has been learnt by all is no longer told apart.
SHIFT = np.array([0.2, 1.2, 0.4])
COVARIANCE = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.6], [0.2, 0.6, 0.8]])


def over_time(seed, points, pairs, shift=SHIFT, covariance=COVARIANCE):
    """Evidence whose one signal over time is the vector, and whose log-odds are where it ends."""
    world, member = vector_world(seed, points, pairs, shift, covariance, names=("log_odds", "hinge", "entropy"))
    parts = [world, *world.also.values()]
    target = np.concatenate([one.target for one in parts])
    references = np.concatenate([one.references for one in parts], axis=1)
    none = {"population": np.zeros((len(parts), 0)), "population_references": np.zeros((2 * pairs, len(parts), 0))}
    return replace(parts[-1], target=target, references=references, also={}, **none), parts[-1], member


def with_trajectory(seen, end, name, population=30):
    z = np.zeros((1, population)), np.zeros((len(end.references), 1, population))
    return replace(end, population=z[0], population_references=z[1], also={name: seen})


def test_a_recorded_trajectory_reaches_the_closed_form_of_the_best_test():
    seen, end, member = over_time(1, 6000, 48)
    settings = ATTACKS.bind("TrainingTrajectory", {"variance": "global", "correlation": "global"})
    evidence = with_trajectory(seen, end, trace_of(settings).name, 0)
    best = norm.cdf(np.sqrt(SHIFT @ np.linalg.inv(COVARIANCE) @ SHIFT / 2))
    found = naive_auc(ATTACKS["TrainingTrajectory"](evidence, **settings), member)
    assert best - 0.015 < found < best + 3 * auc_error(member)
    assert found > naive_auc(lira(end), member) + 0.1  # which sees how it ended


def test_a_distilled_trajectory_counts_beside_the_targets_own_signal():
    """Two epochs of a student, and the target: all three coordinates of the vector."""
    seen, end, member = over_time(2, 6000, 48)
    settings = ATTACKS.bind("LossTrajectory", {"variance": "global", "correlation": "global"})
    student = replace(
        seen,
        target=seen.target[:2],
        references=seen.references[:, :2],
        population=seen.population[:2],
        population_references=seen.population_references[:, :2],
    )
    evidence = with_trajectory(student, end, distilled_of(settings).name)
    best = norm.cdf(np.sqrt(SHIFT @ np.linalg.inv(COVARIANCE) @ SHIFT / 2))
    found = naive_auc(ATTACKS["LossTrajectory"](evidence, **settings), member)
    assert best - 0.015 < found < best + 3 * auc_error(member)
    joined = ATTACKS["TrainingTrajectory"](
        with_trajectory(seen, end, trace_of({"epochs": 6}).name), variance="global", correlation="global"
    )
    np.testing.assert_allclose(ATTACKS["LossTrajectory"](evidence, **settings), joined, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_trajectory_of_one_epoch_is_lira(mode):
    evidence, _ = gaussian_world(3, 300, 4)
    alone = with_trajectory(replace(evidence, also={}), evidence, trace_of({"epochs": 1}).name)
    found = ATTACKS["TrainingTrajectory"](alone, epochs=1, mode=mode)
    np.testing.assert_allclose(found, lira(evidence, mode=mode), rtol=1e-10, atol=1e-10)


def test_without_a_population_there_is_nothing_to_distil_on():
    seen, end, _ = over_time(4, 40, 2)
    evidence = with_trajectory(seen, end, distilled_of(ATTACKS.bind("LossTrajectory", {})).name, 0)
    with pytest.raises(ValueError, match=r"audit\.population_size"):
        ATTACKS["LossTrajectory"](evidence)
