"""Which records a run of the original tool audited, from its seed: its own draws replayed, and doubt refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import main
from audit import plots
from audit.original_run import audited, drawn
from core.errors import UserError
from core.rng import stream

POOL, MODELS, SIZE, SEED = 400, 8, 120, 1234


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


def naive(seed: int, size: int, again: bool):
    """What the original does, line by line; RandomState(seed) is what np.random.seed(seed) makes of np.random."""
    random = np.random.RandomState(seed)
    member = np.ones((MODELS, POOL), dtype=bool)
    indices = np.arange(POOL)
    for pair in range(MODELS // 2):
        random.shuffle(indices)
        member[2 * pair, indices[POOL // 2 :]] = False
        member[2 * pair + 1, indices[: POOL // 2]] = False
    if again:
        random = np.random.RandomState(seed)
    inside = random.choice(np.where(member[0])[0], size // 2, replace=False)
    outside = random.choice(np.where(~member[0])[0], size // 2, replace=False)
    return member, np.concatenate([inside, outside])


def signals_of(member, points, strength=1.5):
    return stream(1, "signals").normal(size=(MODELS, len(points))) + strength * member[:, points]


@pytest.mark.parametrize("draw", ["training", "later"])
def test_the_draw_is_replayed_and_found_out_by_models_that_are_no_targets(draw):
    member, points = naive(SEED, SIZE, again=draw == "later")
    np.testing.assert_array_equal(drawn(member, SIZE, SEED, draw), points)
    found, when = audited(signals_of(member, points), member, SEED, (0, 1), None, "signals")
    assert when == draw
    np.testing.assert_array_equal(found, points)


def test_the_targets_memberships_do_not_choose_the_draw():
    """Whatever the targets and their twins say, the choice is the same."""
    member, points = naive(SEED, SIZE, again=False)
    signals = signals_of(member, points)
    signals[[0, 1, 4, 5]] = -signals[[0, 1, 4, 5]]
    assert audited(signals, member, SEED, (0, 5), None, "signals")[1] == "training"


def test_where_nothing_tells_it_is_refused_unless_it_is_said():
    member, points = naive(SEED, SIZE, again=False)
    nothing = signals_of(member, points, strength=0.0)
    with pytest.raises(UserError, match=r"120 of 400 records, and their references do not tell which .*original_draw"):
        audited(nothing, member, SEED, (0,), None, "signals")
    np.testing.assert_array_equal(
        audited(nothing, member, SEED, (0,), "later", "signals")[0], naive(SEED, SIZE, True)[1]
    )
    with pytest.raises(UserError, match="no references"):
        audited(signals_of(member, points), member, SEED, range(MODELS), None, "signals")


def test_another_seed_and_odd_numbers_are_refused():
    member, _ = naive(SEED, SIZE, again=False)
    with pytest.raises(UserError, match="random_seed 7 does not draw the memberships"):
        drawn(member, SIZE, 7, "training")
    with pytest.raises(UserError, match="no run of the original tool audits 121 of 400"):
        drawn(member, 121, SEED, "training")


def original(folder: Path, again: bool, size: int = SIZE):
    member, points = naive(SEED, size, again)
    for name in ("signals", "models"):
        (folder / "log" / name).mkdir(parents=True)
    signals = signals_of(member, points)
    np.save(folder / "log/signals/rmia_signals.npy", expit(signals).T.astype(np.float32))
    np.save(folder / "log/models/memberships.npy", member)
    return member, points


def config(folder: Path, seed: int, **more) -> Path:
    path = folder / "c.yaml"
    run = {"log_dir": str(folder / "run"), "random_seed": seed, "num_experiments": 3}
    blocks = {
        "run": run,
        "signals": {"original": str(folder / "log"), **more},
        "audit": {"algorithm": ["LOSS", "LiRA"]},
    }
    path.write_text(json.dumps(blocks, indent=1))
    return path


@pytest.mark.parametrize("again", [False, True])
def test_a_run_on_a_part_of_its_data_is_imported_by_its_seed(tmp_path, again):
    member, points = original(tmp_path, again)
    assert main.main(["--cf", str(config(tmp_path, SEED))]) == 0
    with np.load(tmp_path / "run/report/exp/attack_result_2.npz") as result:
        np.testing.assert_array_equal(result["memberships"], member[2, points])
        assert result["auc"] > 0.75
    page = (tmp_path / "run/report/index.html").read_text()
    assert (
        f"drawn again as the original tool drew them, by {'a run that found' if again else 'the run that trained'}"
        in page
    )


def test_a_wrong_seed_is_answered_with_the_way_out(tmp_path, capsys):
    original(tmp_path, again=False)
    assert main.main(["--cf", str(config(tmp_path, 99))]) == 2
    assert "run.random_seed 99 does not draw the memberships of that run" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_models_that_are_no_longer_used_still_count_in_the_draw(tmp_path):
    """memberships.npy keeps the rows of all models, of which the signals may hold the first ones only."""
    member, points = original(tmp_path, again=False)
    signals = np.load(tmp_path / "log/signals/rmia_signals.npy")
    np.save(tmp_path / "log/signals/rmia_signals.npy", signals[:, :6])
    assert main.main(["--cf", str(config(tmp_path, SEED))]) == 0
    with np.load(tmp_path / "run/report/exp/attack_result_2.npz") as result:
        np.testing.assert_array_equal(result["memberships"], member[2, points])
