"""Estimators that are no networks: their answers, their settings, and files that cannot run anything."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import main
import models
from audit import plots
from core import config as config_
from core.errors import UserError
from core.registry import MODELS, TRAINERS
from core.rng import stream
from core.types import LOG_ODDS, Records
from models.estimator import TINY, smoothing_of
from trainers.evaluate import signals
from trainers.resident import Resident

D = 80
NAMES = [
    "RandomForestClassifier",
    "LogisticRegression",
    "HistGradientBoostingClassifier",
    "GaussianNB",
    "DecisionTreeClassifier",
]


def pool(classes: int = 3, features: int = 5) -> Resident:
    draw = stream(0, "scikit")
    y = np.arange(D) % classes
    x = (draw.normal(size=(D, features)) + y[:, None]).astype(np.float32)
    return Resident.of(Records(x, y.astype(np.int64)), (0.5,), (2.0,), "cpu")


def member() -> np.ndarray:
    return stream(1, "half").permutation(D) < D // 2


def fitted(name: str, data: Resident, seed: int = 3, classes: int = 3, smoothing="auto", **settings):
    fresh = models.build(f"sklearn/{name}", settings, tuple(data.x.shape[1:]), classes, stream(0, "init"))
    (model,) = TRAINERS["fit"]([fresh], data, member()[None], [stream(seed, "train")], smoothing=smoothing)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_signals_are_the_log_odds_of_what_the_estimator_itself_says(name):
    data, settings = pool(), {"max_iter": 20} if name.startswith("Hist") else {}
    model = fitted(name, data, **settings)
    column = signals(model, data, None, wanted=[LOG_ODDS])[0, 0]

    from models.scikit import find

    x = ((data.x - 0.5) / 2).numpy()
    index, state = np.flatnonzero(member()), int(stream(3, "train").integers(2**31 - 1))
    alone = find(name)(**settings)
    alone.set_params(**({"random_state": state} if "random_state" in alone.get_params() else {}))
    p = alone.fit(x[index], data.y.numpy()[index]).predict_proba(x)
    e = smoothing_of(alone, 3)
    p, own = (1 - e) * p + e / 3, np.eye(3, dtype=bool)[data.y.numpy()]
    np.testing.assert_allclose(column, np.log(p[own]) - np.log(p.sum(axis=1, where=~own)), rtol=1e-4, atol=1e-4)
    assert np.isfinite(column).all()


def test_laplaces_rule_adds_one_vote_for_each_class():
    forest = fitted("RandomForestClassifier", pool(), n_estimators=17)
    assert forest.smoothing == pytest.approx(3 / (17 + 3))
    x = pool().normalised(pool().x)
    votes = forest.fitted.predict_proba(x.numpy()) * 17
    np.testing.assert_allclose(forest(x).exp().numpy(), (votes + 1) / (17 + 3), rtol=1e-5)
    assert fitted("LogisticRegression", pool()).smoothing == TINY
    assert fitted("LogisticRegression", pool(), smoothing=0.2).smoothing == 0.2


def test_a_fit_is_a_function_of_its_stream_and_members_alone():
    data = pool()
    ask = lambda model: signals(model, data, None, wanted=[LOG_ODDS])  # noqa: E731
    one, again, other = (fitted("RandomForestClassifier", data, seed, n_estimators=9) for seed in (3, 3, 4))
    np.testing.assert_array_equal(ask(one), ask(again))
    assert (ask(one) != ask(other)).any()


def test_a_class_without_members_has_the_smallest_probability():
    data = pool()
    data.y[torch.as_tensor(member())] = data.y[torch.as_tensor(member())] % 2  # the third is of non-members only
    model = fitted("RandomForestClassifier", data, n_estimators=10)
    p = model(data.batch(torch.arange(D))).exp()
    torch.testing.assert_close(p[:, 2], torch.full((D,), 1 / 13))


def test_what_is_kept_is_answers_and_what_is_new_is_fitted_again():
    data = pool()
    model = fitted("RandomForestClassifier", data, n_estimators=9)
    known, new = data.batch(torch.arange(D)), torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    expected = model(known), model(new)
    del model.answers[next(iter(model.answers))]  # one of the records was never asked about
    state = load(save(model.state_dict()))
    assert set(state) == {"records", "answers", "random_state", "smoothing"}  # numbers: nothing that could run
    again = models.build("sklearn/RandomForestClassifier", {"n_estimators": 9}, (5,), 3, stream(9, "init"))
    assert tuple(again.load_state_dict(state)) == ([], [])
    torch.testing.assert_close(again(known[1:]), expected[0][1:], rtol=0, atol=0)
    assert again.fitted is None
    unheard = torch.zeros(1, 5)
    with pytest.raises(UserError, match="needs the training records"):
        again(unheard)
    index = torch.as_tensor(np.flatnonzero(member()))
    again.training_set = lambda: (data.batch(index), data.y[index])
    torch.testing.assert_close(again(known), expected[0], rtol=0, atol=0)
    torch.testing.assert_close(again(new), expected[1], rtol=0, atol=0)
    again.training_set, again.fitted, again.random_state = (
        (lambda: (data.batch(index), 1 - data.y[index].clamp(max=1))),
        None,
        5,
    )
    with pytest.raises(UserError, match="gives other answers"):
        again(unheard)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{name: sklearn/RandomForest}", "did you mean sklearn/RandomForestClassifier"),
        ("{name: sklearn/os.system}", "scikit-learn has no classifier 'os.system'"),
        (
            "{name: sklearn/RandomForestClassifier, n_estimater: 5}",
            "model_name.n_estimater: no setting of RandomForest",
        ),
        ("{name: sklearn/RandomForestClassifier, n_estimators: -5}", "n_estimators: The 'n_estimators' parameter"),
        ("{name: sklearn/RandomForestClassifier, random_state: 5}", "random_state: comes from run.random_seed"),
        ("{name: sklearn/VotingClassifier}", "needs other estimators"),
    ],
)
def test_a_wrong_estimator_or_setting_is_named_at_its_line(tmp_path, model, said):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"run: {{log_dir: x}}\ndata: {{dataset: digits}}\ntrain:\n  model_name: {model}\naudit: {{algorithm: LOSS}}\n"
    )
    with pytest.raises(UserError) as caught:
        config_.load(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}:4: train.model_name") and said in line, line


def test_networks_and_estimators_have_their_own_trainers(tmp_path):
    path = tmp_path / "c.yaml"
    text = (
        "run: {log_dir: x}\ndata: {dataset: digits}\ntrain: {model_name: %s, trainer: %s}\naudit: {algorithm: LOSS}\n"
    )
    for model, trainer in (("mlp", "fit"), ("sklearn/GaussianNB", "dp_sgd")):
        path.write_text(text % (model, trainer))
        with pytest.raises(UserError, match=f"train.trainer: {trainer} cannot train {model}|missing"):
            config_.load(path)


@pytest.fixture
def forest(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    path = tmp_path / "forest.yaml"
    blocks = {
        "run": {"log_dir": str(tmp_path / "run"), "random_seed": 3, "workers": 1},
        "data": {"dataset": "breast_cancer"},
        "train": {"model_name": {"name": "sklearn/RandomForestClassifier", "n_estimators": 20}},
        "audit": {"algorithm": ["LOSS", "LiRA", "RMIA", "Entropy"], "num_ref_models": 2},
    }
    path.write_text(json.dumps(blocks, indent=1))
    return path


def test_a_forest_is_audited_resumed_and_never_fitted_again(forest, tmp_path, monkeypatch):
    assert main.main(["--cf", str(forest)]) == 0
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/models").glob("*.safetensors")}
    scores = np.load(tmp_path / "run/report/exp/attack_result_0.npz")
    assert len(made) == 5 and scores["LiRA/auc"] > 0.6  # a forest remembers what it was grown on
    assert not list((tmp_path / "run").rglob("*.pkl"))
    monkeypatch.setattr("models.estimator.Estimator._fit", lambda self, x, y: pytest.fail("fitted again"))
    assert main.main(["--cf", str(forest)]) == 0
    # Other points are other questions, of records that were all asked about when the model was fitted.
    assert main.main(["--cf", str(forest), "--set", "audit.data_size=200"]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/models").glob("*.safetensors")} == made
    assert main.main(["--cf", str(forest), "--set", "train.smoothing=0.1"]) == 2  # refused, not mixed


def test_every_registered_estimator_says_what_trains_it():
    assert MODELS.fact("sklearn/GaussianNB", "trainer") == "fit"
