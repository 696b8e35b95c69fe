"""Trajectories in whole runs: recorded in training, or of a student that is taught by the model."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import main
from audit.pipeline import prepared
from audit.signals import evidence
from audit.trace_signals import column
from audit.training import load_model, losses_path, trace_path
from core.config import load
from core.errors import UserError
from core.rng import stream
from core.types import LOG_ODDS, Records
from modules.mia.trajectory import distilled_of, trace_of
from tests.audit.test_label_only import config
from trainers.distil import trajectory
from trainers.evaluate import signals
from trainers.resident import Resident


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from audit import plots

    path = config(tmp_path_factory.mktemp("traces"), "[LOSS, TrainingTrajectory, {name: LossTrajectory, epochs: 2}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda figure: b"a picture")
        patch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
        assert main.main(["--cf", str(path)]) == 0
    return path


def test_the_recorded_trajectory_ends_where_the_model_is(finished):
    session = prepared(load(finished))
    seen = evidence(session, 0)
    over_time = seen.also[trace_of({"epochs": 6}).name]
    assert over_time.target.shape == (2, 120) and over_time.references.shape == (4, 2, 120)  # 2 epochs were trained
    np.testing.assert_allclose(over_time.target[-1], seen.target[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(over_time.references[:, -1], seen.references[:, 0], rtol=1e-4, atol=1e-5)
    assert abs(over_time.target[0] - over_time.target[1]).max() > 0.01
    trace, losses = (np.load(of(session, 0)) for of in (trace_path, losses_path))
    np.testing.assert_allclose(losses, np.logaddexp(0, -trace[:, session.plan.member[0]]), rtol=1e-6)


def test_every_model_teaches_a_student_of_its_own_from_the_same_start(finished):
    settings = {"epochs": 2, "learning_rate": 1e-3, "batch_size": 64}
    over_time = evidence(prepared(load(finished)), 0).also[distilled_of(settings).name]
    assert over_time.target.shape == (2, 120) and np.isfinite(over_time.references).all()
    apart = abs(over_time.references[0] - over_time.references[1]).mean()
    assert 0 < apart < abs(over_time.references[0]).mean()


def test_two_models_that_say_the_same_have_the_same_student(finished):
    session, signal = prepared(load(finished)), distilled_of({"epochs": 2, "learning_rate": 1e-3, "batch_size": 64})
    data, network = session.data, load_model(session, 0, torch.device("cpu"))
    points, population = (
        Resident.of(records.select(index), data.mean, data.std, "cpu")
        for records, index in ((data.pool, session.points), (data.population, session.population))
    )
    one, other = (column(session, model, network, points, population, signal) for model in (0, 3))
    assert np.array_equal(one, other)
    np.testing.assert_allclose(one, evidence(session, 0).also[signal.name].target, rtol=1e-5, atol=1e-6)


def records(name, count=90):
    draw = stream(1, name)
    return Resident.of(Records(np.float32(draw.random((count, 5))), draw.integers(0, 3, count)), (0.0,), (1.0,), "cpu")


def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Dropout(0.0), torch.nn.Linear(7, 3))


def test_distillation_is_a_plain_loop_on_the_teachers_probabilities():
    population, points = records("population"), records("points", 40)
    options = {"epochs": 3, "learning_rate": 0.01, "batch_size": 16}
    found = trajectory(network(1), network(2), population, points, stream(3, "d"), **options, ask_batch_size=50)
    draw = stream(3, "d")
    draw.integers(2**63)  # what seeds torch's dropout
    student, taught = network(2), network(1)(population.x).softmax(1).detach()
    optimizer, expected = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.0), []
    for _ in range(3):
        for batch in torch.tensor(draw.permutation(90)).split(16):
            p = taught[batch]
            loss = (p * (p.log() - F.log_softmax(student(population.x[batch]), 1))).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
        expected.append(signals(student, points, wanted=[LOG_ODDS])[0, 0])
        student.train()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_student_never_hears_what_its_teacher_says_of_the_points():
    """Asked about other points it makes the same of those that both have; the teacher is asked for the population."""
    population, points = records("population"), records("points", 40)
    options = {"epochs": 2, "learning_rate": 0.01, "batch_size": 32, "ask_batch_size": 64}
    fewer = Resident.of(Records(points.x[:10].numpy(), points.y[:10].numpy()), (0.0,), (1.0,), "cpu")
    before = torch.random.get_rng_state()
    teacher = network(1)
    state = torch.random.get_rng_state()
    whole, some = (trajectory(teacher, network(2), population, p, stream(4, "d"), **options) for p in (points, fewer))
    np.testing.assert_allclose(whole[:, :10], some, rtol=1e-5, atol=1e-6)
    other = trajectory(network(9), network(2), population, points, stream(4, "d"), **options)
    assert not np.allclose(other, whole)
    assert before is not None and state is not None


@pytest.mark.parametrize(
    ("algorithm", "change", "said"),
    [
        ("[TrainingTrajectory]", (",\n    record_losses: all", ""), "set train.record_losses: all"),
        ("[TrainingTrajectory]", ("record_losses: all", "record_losses: true"), "set train.record_losses: all"),
        (
            "[LossTrajectory]",
            ("population_size: 60", "population_size: 9"),
            "20 population records to teach a student by; there are 9",
        ),
        (
            "[LossTrajectory]",
            (
                "{model_name: {name: mlp, hidden: [8]}, epochs: 2, batch_size: 32, learning_rate: 0.1, "
                "device: cpu,\n    "
                "record_losses: all}",
                "{model_name: sklearn/RandomForestClassifier}",
            ),
            "is fitted at once",
        ),
    ],
)
def test_what_has_no_trajectory_is_said_before_anything_is_trained(tmp_path, algorithm, change, said):
    path = config(tmp_path, algorithm)
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(UserError, match=said):
        prepared(load(path))
    assert not (tmp_path / "run").exists()
