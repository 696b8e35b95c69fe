"""Attacks on predicted labels in a whole run; and no attack's scores know the target's members."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import main
from audit.pipeline import prepared
from audit.signals import Wanted, evidence
from core.config import load
from core.registry import ATTACKS
from modules.mia.label_distance import signal_of

ON_LABELS = [name for name in ATTACKS if not ATTACKS.fact(name, "needs_text")]
ONLINE = {"mode": "online", "queries": 60, "directions": 5}
BOTH = [Wanted(0, "points", signal_of(ATTACKS.bind("LabelDistance", settings))) for settings in ({}, ONLINE)]
TINY = """\
run: {{log_dir: {log_dir}, random_seed: 7, workers: 1}}
data: {{dataset: {dataset}}}
train:
  {{model_name: {{name: mlp, hidden: [8]}}, epochs: 2, batch_size: 32, learning_rate: 0.1, device: cpu,
    record_losses: all}}
audit:
  algorithm: {algorithm}
  num_ref_models: 2
  data_size: 120
  population_size: 60
  device: cpu
"""


def config(folder, algorithm, dataset="synthetic_tabular, num_records: 300, num_features: 12, num_classes: 4"):
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(log_dir=folder / "run", algorithm=algorithm, dataset=dataset))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from audit import plots

    folder = tmp_path_factory.mktemp("labels")
    online = "{name: LabelRobustness, mode: online}, {name: LabelDistance, mode: online, queries: 60, directions: 5}"
    path = config(folder, f"[{', '.join(ON_LABELS)}, {online}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda figure: b"a picture")
        patch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
        assert main.main(["--cf", str(path)]) == 0
    return path


def test_labels_are_hard_counted_and_found_again(finished, caplog):
    folder = finished.parent / "run/signals"
    labels = sorted(folder.glob("points_*/model_*.label.npy"))
    robust = sorted(folder.glob("points_*/model_*.robust_label_*.npy"))
    assert len(labels) == len(robust) == 5 and not list(folder.glob("population_*/*label*"))
    for path, shape in [(labels[0], (1, 120)), (robust[0], (31, 120))]:
        array = np.load(path)
        assert array.shape == shape and array.dtype == np.float32 and set(np.unique(array)) <= {0.0, 1.0}
        stamp = json.loads(path.with_name(f"{path.name}.stamp.json").read_text())
        assert stamp["facts"]["labels asked for"] == array.size
    assert np.array_equal(np.load(labels[0])[0], np.load(robust[0])[0])  # the first copy is the record itself
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert main.main(["--cf", str(finished), "--check"]) == 0
    from audit.signals import missing_signals

    assert not missing_signals(prepared(load(finished)))
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


def test_distances_keep_their_budget_and_only_who_compares_asks_the_references(finished):
    folder = finished.parent / "run/signals"
    of = {dict(s.signal.options)["queries"]: sorted(folder.glob(f"points_*/model_*.{s.signal.name}.npy")) for s in BOTH}
    assert [len(of[queries]) for queries in (500, 60)] == [1, 5]  # the target alone, and with its references
    for queries, files in of.items():
        for path in files:
            found = np.load(path)
            facts = json.loads(path.with_name(f"{path.name}.stamp.json").read_text())["facts"]
            assert found.shape == (1, 120) and found.dtype == np.float32 and (found >= 0).all()
            assert facts["most labels of one record"] <= queries
            assert facts["labels asked for"] <= 120 * queries + 60  # and one of each of the population
    right = np.load(folder.glob("points_*/model_0.label.npy").__next__())
    assert np.array_equal(np.load(of[500][0]) > 0, right > 0)  # 0 of records labelled wrongly, and of no others


def test_the_report_says_what_was_asked(finished):
    page = (finished.parent / "run/report/index.html").read_text()
    assert "120 labels of the target, at most 1 about one record" in page  # LabelGap
    assert "3,720 labels of the target, at most 31 about one record" in page
    assert "14,880 of 4 references" in page  # LabelRobustness, online
    assert re.search(r"at most [45]\d about one record; [\d,]+ of 4 references", page)  # LabelDistance, online


def test_a_distance_that_no_reference_was_asked_for_gives_no_p_value_of_its_own(finished):
    from audit.risk import _rehearsed
    from core.config import Call

    seen, _ = _seen(finished)
    alone, online = (Call("LabelDistance", ATTACKS.bind("LabelDistance", settings)) for settings in ({}, ONLINE))
    assert _rehearsed(alone, seen) is None
    assert _rehearsed(online, seen) is not None


def test_the_gap_of_labels_is_the_gap_of_accuracies(finished):
    seen, session = _seen(finished)
    member = session.plan.member[0, session.points]
    right = seen.also["label"].target[0]
    from core.metrics import auc

    gap = right[member].mean() - right[~member].mean()
    assert auc(ATTACKS["LabelGap"](seen), member) == pytest.approx(0.5 + gap / 2)


@pytest.mark.parametrize("name", ON_LABELS)
def test_no_attack_reads_who_the_targets_members_are(finished, name):
    """Of two worlds that differ in the target's membership alone, an attacker sees the same bytes."""
    session = prepared(load(finished))
    flipped = session.plan.member.copy()
    flipped[0] = ~flipped[0]
    other = replace(session, plan=replace(session.plan, member=flipped))
    settings = ATTACKS.bind(name, {})
    scores = [np.asarray(ATTACKS[name](evidence(one, 0), **settings)).tobytes() for one in (session, other)]
    assert scores[0] == scores[1]


def _seen(path):
    session = prepared(load(path))
    return evidence(session, 0), session


def test_images_are_asked_about_as_moved_copies(tmp_path, monkeypatch):
    from audit import plots

    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
    path = config(tmp_path, "[{name: LabelRobustness, translate: 2, rotate: 0}]", "digits")
    assert main.main(["--cf", str(path)]) == 0
    (file,) = tmp_path.glob("run/signals/points_*/model_0.robust_label_*.npy")
    assert np.load(file).shape == (9, 120)


@pytest.mark.parametrize(
    ("algorithm", "dataset", "said"),
    [
        ("[LabelGap]", "docstrings", "texts have none"),
        ("[{name: LabelRobustness, translate: 8}]", "digits", "moves images"),
        ("[{name: LabelRobustness, translate: 0, rotate: 0}]", "digits", "leave one copy"),
        ("[{name: LabelRobustness, levels: []}]", "digits", "levels"),
        ("[{name: LabelRobustness, levels: [2]}]", "digits", "levels"),
        ("[{name: LabelDistance, queries: 30}]", "digits", "queries 30 is too few for 64 values"),
        ("[LabelDistance]", "docstrings", "texts have none"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_trained(tmp_path, capsys, algorithm, dataset, said):
    path = config(tmp_path, algorithm, dataset)
    if dataset == "docstrings":
        path.write_text(
            path.read_text().replace("{name: mlp, hidden: [8]}", "gpt2_tiny").replace(",\n    record_losses: all", "")
        )
    assert main.main(["--cf", str(path), "--check"]) == 2
    error = capsys.readouterr().err
    assert said in error and "tiny.yaml:" in error
    assert not (tmp_path / "run").exists()


def test_ranges_are_not_scored_by_labels(tmp_path, capsys):
    path = config(tmp_path, "[LabelGap]", "digits")
    path.write_text(path.read_text() + "ramia: {range_function: {name: l2, radius: 3}}\n")
    assert main.main(["--cf", str(path), "--check"]) == 2
    assert "ramia.attack" in capsys.readouterr().err


def test_given_logits_answer_the_gap_attack_and_no_other_question_about_labels():
    from audit.given import Answers, Given
    from core.types import Signal

    logits = np.array([[[[1.0, 2.0], [3.0, 0.0]]]], np.float32)  # one model, one query, two points
    answers = Answers(np.zeros((1, 1, 2), np.float32), logits, np.array([0, 0]))
    assert answers.column(Signal("label"), 0).tolist() == [[0.0, 1.0]]
    given = Given(answers, answers, ({},), True)
    assert given.has(Signal("label")) and not given.has(Signal("robust_label")) and not given.has(Signal("boundary"))
