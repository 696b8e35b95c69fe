"""A DP audit end to end: what a broken DP-SGD shows, what a right one does not, and every mistake at its line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import audit.dp_audit
import main
import trainers.dp_sgd  # noqa: F401  (registers dp_sgd)
from audit import pipeline, plots
from audit.dp_audit import MECHANISMS
from audit.dp_audit_canaries import canaries_of
from audit.dp_audit_runs import black_box, sessions, white_box, with_references
from audit.dp_audit_setup import setup_of
from core import rundir
from core.config import load
from core.rng import stream
from core.types import Evidence
from trainers import dp_loop

TINY = """\
run:
  log_dir: {log_dir}
  random_seed: 7
data:
  dataset: synthetic_tabular
  num_records: 400
  num_features: 24
  num_classes: 5
train:
  model_name: {{name: mlp, hidden: [64]}}
  epochs: 100
  batch_size: 32
  learning_rate: 0.2
audit:
  algorithm: LOSS
dp_audit:
  canary_dataset: [mislabelled, dirac_gradient]
  canary_size: 120
  training_alg: [dp, nondp]
  dp_sgd: {{noise_multiplier: 1.5, epochs: 3, batch_size: 60, learning_rate: 0.5}}
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.format(log_dir=tmp_path / "run"))
    return path


@pytest.fixture(autouse=True)
def quick_pictures(request, monkeypatch):
    if "every_file" not in request.node.name:
        monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
        monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


def run(config, *arguments):
    return main.main(["--cf", str(config), *arguments])


def prepared(config, *overrides):
    experiment = load(config, list(overrides))
    session = pipeline.prepare(experiment)
    call = next(call for call in experiment.modules if call.name == "dp_audit")
    return session, setup_of(session, **call.settings)


def table(path: Path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_every_file_and_says_what_was_found(config, tmp_path, capsys):
    assert run(config) == 0
    folder = tmp_path / "run/report/dp_audit"
    assert {path.name for path in folder.iterdir()} == {
        *("dp_audit.csv", "bounds.csv", "epsilon_by_guesses.png", "ROC.png"),
        *("canaries_dp_mislabelled_0.csv", "canaries_dp_dirac_gradient_0.csv", "canaries_nondp_mislabelled_0.csv"),
    }
    assert all(path.stat().st_size > 0 for path in folder.iterdir())
    private, plain = table(folder / "dp_audit.csv")
    assert float(private["epsilon_lower_bound"]) < float(private["epsilon_accounted"]) < 10
    assert private["verdict"] in ("consistent", "not testable")
    assert float(plain["epsilon_lower_bound"]) > 1 and plain["verdict"] == "no claim"
    assert len(table(folder / "bounds.csv")) == 3
    page = (tmp_path / "run/report/index.html").read_text()
    assert "Differential privacy (DP audit)" in page and "dirac_gradient" in page and "lower</em> bound" in page
    out = capsys.readouterr().out
    assert "DP-SGD: ε ≥" in out and "without DP: ε ≥" in out
    metadata = json.loads((tmp_path / "run/dp_audit/dp_mislabelled/models/models_metadata.json").read_text())
    assert list(metadata) == ["0"]


def results(log_dir):
    found = [*log_dir.glob("dp_audit/**/*.safetensors"), *log_dir.glob("dp_audit/**/*.npy")]
    found += log_dir.glob("report/dp_audit/*.csv")
    return {str(path.relative_to(log_dir)): path.read_bytes() for path in found}


@pytest.mark.slow
def test_it_is_the_same_anywhere_and_a_second_run_trains_nothing(config, tmp_path):
    assert run(config) == 0
    first = results(tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/dp_audit").rglob("*.stamp.json")}
    assert len(times) >= 3
    assert run(config) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert run(config, "--set", f"run.log_dir={tmp_path / 'again'}") == 0
    assert len(first) > 8 and results(tmp_path / "run") == first == results(tmp_path / "again")


@pytest.mark.slow
def test_more_runs_add_models_and_change_none(config, tmp_path):
    assert run(config) == 0
    weights = lambda: {k: v for k, v in results(tmp_path / "run").items() if k.endswith((".safetensors", "_0.npy"))}  # noqa: E731
    before = weights()
    assert run(config, "--set", "run.num_experiments=2") == 0
    after = weights()
    assert all(after[name] == before[name] for name in before) and len(after) > len(before)
    rows = table(tmp_path / "run/report/dp_audit/bounds.csv")
    assert len(rows) == 6
    for row in rows:  # two kinds of canaries in two runs of DP-SGD share one error, one kind in two runs the other
        shared = 4 if row["training"] == "DP-SGD" else 2
        assert float(row["level"]) == pytest.approx(1 - 0.05 / shared)
    for verdict in table(tmp_path / "run/report/dp_audit/dp_audit.csv"):
        own = [float(row["epsilon_lower_bound"]) for row in rows if row["training"] == verdict["training"]]
        assert float(verdict["epsilon_lower_bound"]) == max(own)  # the best of them, never all of them pooled
        assert float(verdict["level"]) == pytest.approx(0.95)


def test_other_noise_is_refused_not_mixed(config, tmp_path, capsys):
    assert run(config) == 0
    assert run(config, "--set", "dp_audit.dp_sgd.noise_multiplier=2.5") == 2
    assert "train.noise_multiplier 1.5, now 2.5" in capsys.readouterr().err


def test_targets_train_on_all_but_canaries_and_references_on_no_canary(config):
    session, setup = prepared(config, "dp_audit.attack=RMIA", "dp_audit.references=3", "run.num_experiments=40")
    arm = next(arm for arm in setup.arms if arm.kind == "mislabelled")
    here, references = sessions(session, arm, setup.canaries)
    canaries = here.points
    assert len(canaries) == 120 and here.plan.member.shape == (40, len(session.data.pool))
    fixed = np.setdiff1d(np.arange(len(here.data.pool)), canaries)
    assert here.plan.member[:, fixed].all() and references.plan.member[:, fixed].all()
    assert references.plan.member.shape[0] == 3 and not references.plan.member[:, canaries].any()
    coins = here.plan.member[:, canaries]
    assert abs(coins.mean() - 0.5) < 4 / np.sqrt(4 * coins.size) and len(np.unique(coins.sum(axis=1))) > 10
    assert here.name != references.name != session.name


def test_an_attack_with_references_sees_them_beside_the_target(config):
    session, setup = prepared(config, "dp_audit.attack=RMIA", "dp_audit.references=2", "dp_audit.training_alg=nondp",
                              "dp_audit.canary_dataset=mislabelled")  # fmt: skip
    (run_,) = black_box(session, setup.arms[0], setup.canaries)
    assert run_.scores[run_.member].mean() > run_.scores[~run_.member].mean() + 0.1


def test_references_are_stacked_in_every_signal():
    def of(seed):
        draw = stream(seed, "evidence")
        signal = lambda *shape: draw.standard_normal(shape).astype(np.float32)  # noqa: E731
        nobody = np.zeros((0, 5), dtype=bool)
        return Evidence(signal(2, 5), signal(0, 2, 5), nobody, signal(2, 7), signal(0, 2, 7))

    evidence = [Evidence(**{**vars(of(k)), "also": {"taylor": of(10 + k)}}) for k in range(3)]
    seen = with_references(evidence[0], evidence[1:])
    pairs = [(evidence, seen), ([one.also["taylor"] for one in evidence], seen.also["taylor"])]
    for (target, *others), found in pairs:
        np.testing.assert_array_equal(found.target, target.target)
        np.testing.assert_array_equal(found.references, [one.target for one in others])
        np.testing.assert_array_equal(found.population_references, [one.population for one in others])
        assert found.trained_on.shape == (2, 5) and not found.trained_on.any()


def test_adversarial_canaries_are_unlikely_and_know_nothing_of_the_pool(config):
    """Made of the population alone, near its records, with a label that its model does not believe in."""
    session, setup = prepared(config, "dp_audit.canary_dataset=adversarial", "dp_audit.training_alg=nondp",
                              "dp_audit.canary_size=60")  # fmt: skip
    made = canaries_of(session, "adversarial", setup.canaries)
    assert made.fixed == len(session.data.pool) and len(made.canaries) == 60
    x, y = made.data.pool.x[made.canaries], made.data.pool.y[made.canaries]
    low, high = session.data.population.x.min(), session.data.population.x.max()
    distance = np.abs(x[:, None] - session.data.population.x[None]).max(axis=2).min(axis=1)
    assert (distance <= 0.2501 * (high - low)).all() and x.min() >= low and x.max() <= high and (distance > 0).all()
    assert rundir.read_stamp(session.folder / "dp_audit/canaries_adversarial.npz")["facts"]["loss"] > 5
    other = replace(session.data.pool, x=session.data.pool.x[::-1] + 1, y=session.data.pool.y[::-1])
    (session.folder / "dp_audit/canaries_adversarial.npz.stamp.json").unlink()  # made anew, beside another pool
    again = canaries_of(replace(session, data=replace(session.data, pool=other)), "adversarial", setup.canaries)
    np.testing.assert_array_equal(again.data.pool.x[again.canaries], x)
    np.testing.assert_array_equal(np.unique(y), np.arange(5))


# --- broken implementations are caught, right ones are not accused -----------------------------------------------

FULL = """\
run: {{log_dir: {log_dir}, random_seed: {seed}}}
data: {{dataset: digits}}
train: {{model_name: {{name: mlp, hidden: [64]}}, epochs: 1, learning_rate: 0.1}}
audit: {{algorithm: LOSS}}
dp_audit:
  canary_dataset: dirac_gradient
  canary_size: 1500
  estimator: gaussian   # full batches: DP-SGD is a Gaussian mechanism, exactly
  dp_sgd: {{target_epsilon: 4, epochs: 4, batch_size: 5000}}
"""
SEEDS = (1, 2, 3)


def verdicts(tmp_path, *overrides):
    found = []
    for seed in SEEDS:
        path = tmp_path / f"full_{seed}.yaml"
        path.write_text(FULL.format(log_dir=tmp_path / f"run_{seed}", seed=seed))
        session, setup = prepared(path, *overrides)
        found.append(audit.dp_audit._found(session, setup, "DP-SGD", setup.arms))
    return found


def test_a_right_dp_sgd_is_consistent_with_what_the_accountant_says(tmp_path):
    for found in verdicts(tmp_path):
        assert found.verdict.word == "consistent" and 3.99 < found.accounted <= 4.0
        assert 1.5 < found.bound.eps < 4.0  # and the audit is not blind


def test_half_the_stated_noise_is_caught(tmp_path, monkeypatch):
    right = dp_loop.noise_sd
    monkeypatch.setattr(dp_loop, "noise_sd", lambda mechanism: right(mechanism) / 2)
    for found in verdicts(tmp_path):
        assert found.verdict.word == "contradicted" and found.accounted <= 4.0 < found.bound.eps


def test_a_missing_clip_is_caught_whatever_the_mechanism(tmp_path, monkeypatch):
    """No family assumed: what a canary hands in unclipped is far above the noise."""
    monkeypatch.setattr(dp_loop, "clip_factors", lambda norms, clip: norms * 0 + 1)
    for found in verdicts(tmp_path, "dp_audit.estimator=one_run", "dp_audit.guesses=calibrated"):
        assert found.verdict.word == "contradicted" and found.bound.family == "none" and found.bound.eps > 4.0


def test_white_box_scores_tell_members_and_survive_a_restart(config):
    session, setup = prepared(config)
    arm = next(arm for arm in setup.arms if arm.kind == "dirac_gradient")
    (first,) = white_box(session, arm, setup.canaries)
    assert first.scores[first.member].mean() > first.scores[~first.member].mean() + 1
    (again,) = white_box(session, arm, setup.canaries)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert first.facts == again.facts


# --- mechanisms --------------------------------------------------------------------------------------------------


MECHANISMS_OF = [
    ("{name: randomised_response, epsilon: 1}", 1.0),
    ("{name: laplace, epsilon: 2}", 2.0),
    ("gaussian", 4.3772),
]


@pytest.mark.slow
@pytest.mark.parametrize(("mechanism", "epsilon"), MECHANISMS_OF)
def test_audits_of_a_mechanism_claim_too_much_as_rarely_as_they_say(config, mechanism, epsilon):
    """Coverage of the whole pipeline, memberships and ties included: one audit alone may err, about 1 in 20 does."""
    audits = 400
    overrides = [f"dp_audit.mechanism={mechanism}", "dp_audit.canary_size=1000", f"run.num_experiments={audits}"]
    session, setup = prepared(config, *overrides)
    (arm,) = setup.arms
    assert arm.accounted(setup.delta) == pytest.approx(epsilon, abs=1e-3)
    runs = audit.dp_audit._runs(session, setup, arm)
    bounds = [audit.dp_audit._bound(session, setup, arm, t, 0.95, run).eps for t, run in enumerate(runs)]
    assert np.mean(np.array(bounds) > epsilon) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / audits)
    assert np.median(bounds) > 0.3 * epsilon  # and the audit is not blind


def test_a_mechanism_is_audited_without_any_training_of_its_own(config, tmp_path, capsys):
    assert run(config, "--set", "dp_audit.mechanism={name: gaussian, mu: 2}") == 0
    assert "gaussian (mu=2): ε ≥" in capsys.readouterr().out
    assert not (tmp_path / "run/dp_audit").exists()
    assert len(table(tmp_path / "run/report/dp_audit/bounds.csv")) == 1


@pytest.fixture
def own_mechanism():
    """A user's own, of a plugin: it promises ε = 1 and tells every bit."""

    @MECHANISMS.register("tells_all", epsilon=lambda settings, delta: 1.0)
    def tells_all(member, rng):
        return member.astype(float)

    @MECHANISMS.register("broken")
    def broken(member, rng):
        return member[:-1].astype(float)

    yield
    for name in ("tells_all", "broken"):
        del MECHANISMS[name]


@pytest.mark.usefixtures("own_mechanism")
def test_a_users_mechanism_that_breaks_its_promise_is_caught(config, capsys):
    session, setup = prepared(config, "dp_audit.mechanism=tells_all")
    found = audit.dp_audit._found(session, setup, "m", setup.arms)
    assert found.verdict.word == "contradicted" and found.bound.right == found.bound.r
    assert run(config, "--set", "dp_audit.mechanism=broken") == 2
    assert "dp_audit.mechanism: broken gave scores of shape (119,), or NaN, for 120 bits" in capsys.readouterr().err


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dp_audit.canary_dataset=mislabeled", "dp_audit.canary_dataset: no kind of canary is called 'mislabeled'"),
        ("dp_audit.canary_dataset=[natural,none]", "dp_audit.canary_dataset: should be one or several different"),
        ("dp_audit.canary_size=100000", "dp_audit.canary_size: 100000 canaries are more than the"),
        ("dp_audit.training_alg=dpsgd", "dp_audit.training_alg"),
        ("dp_audit.training_algorithm=dp", "did you mean 'training_alg'?"),
        ("dp_audit.dp_sgd={}", "dp_audit.dp_sgd: dp_sgd needs noise_multiplier or target_epsilon, neither is set"),
        ("dp_audit.dp_sgd.target_epsilon=8", "both are set"),
        ("dp_audit.dp_sgd.noise=1", "dp_audit.dp_sgd.noise: "),
        ("dp_audit.dp_sgd.delta=0.001", "dp_audit.dp_sgd.delta: is 0.001, dp_audit.delta 1e-05"),
        ("dp_audit.attack=LIRA2", "dp_audit.attack: no attack is called 'LIRA2'"),
        ("dp_audit.attack=LiRA", "offline mode"),
        ("dp_audit.attack={name: RMIA, gama: 2}", "dp_audit.attack: gama"),
        ("dp_audit.guesses={name: fixed, k_plus: 90, k_minus: 90}", "dp_audit.guesses: k_plus = 90"),
        ("dp_audit.guesses=best", "dp_audit.guesses: no choice of guesses is called 'best'"),
        ("dp_audit.delta=0.01", "dp_audit"),
        ("dp_audit.claim={epsilon: 1, delta: 0.1}", "dp_audit.claim.delta: 0.1 is more than dp_audit.delta"),
        ("dp_audit.claim={eps: 1}", "dp_audit.claim"),
        ("dp_audit.mechanism=gauss", "dp_audit.mechanism: no mechanism is called 'gauss'"),
        ("dp_audit.mechanism={name: gaussian, mu: 0}", "dp_audit.mechanism: mu"),
        ("train.model_name={name: mlp, hidden: [2]}", "dp_audit.canary_size: 120 dirac_gradient canaries need"),
    ],
)
def test_every_mistake_is_told_at_its_key_before_anything_is_trained(config, tmp_path, capsys, change, message):
    extra = ["dp_audit.guesses=calibrated"] if change == "dp_audit.delta=0.01" else []
    assert run(config, "--set", change, *extra) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_gradients_go_into_dp_sgd_only(config, capsys):
    changes = ["dp_audit.training_alg=nondp", "dp_audit.canary_dataset=dirac_gradient"]
    assert run(config, "--set", *changes) == 2
    assert "dirac_gradient goes into DP-SGD" in capsys.readouterr().err


def test_the_original_tools_keys_still_work(config):
    _, setup = prepared(config, "dp_audit.canary_dataset=cifar10_canary", "dp_audit.training_alg=dp")
    assert [arm.kind for arm in setup.arms] == ["mislabelled"]
    _, setup = prepared(config, "dp_audit.canary_dataset=none", "dp_audit.training_alg=nondp")
    assert [(arm.training, arm.kind) for arm in setup.arms] == [("nondp", "natural")]
    session, setup = prepared(config)
    assert {arm.kind: arm.trainer.settings["public_size"] for arm in setup.arms if arm.training == "dp"} == {
        "mislabelled": len(session.data.pool) - 60,  # of 120 canaries, the half that is expected
        "dirac_gradient": len(session.data.pool) + 60,
    }
