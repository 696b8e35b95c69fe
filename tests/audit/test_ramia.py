"""`ramia:` end to end on small runs: range level everywhere, true memberships, caches, clear mistakes."""

import csv
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import audit.ramia
import audit.ramia_evidence
import audit.ramia_report
import main
from audit import plots
from audit.pipeline import prepared
from audit.ramia_evidence import Ranges
from core.config import load
from core.metrics import auc
from core.registry import ATTACKS, DATASETS
from core.rng import stream
from core.types import AuditData, Estimate, Evidence, Records, pairs_of
from modules.ramia.aggregation import Aggregation, trimmed_mean

TINY = """\
run: {log_dir: LOG, random_seed: 7}
data: {dataset: synthetic_tabular, num_records: 240, num_features: 60, num_classes: 3, noise: 6}
train:
  model_name: {name: mlp, hidden: [32]}
  optimizer: Adam
  learning_rate: 0.01
  epochs: 30
  batch_size: 32
audit: {algorithm: [LiRA, RMIA], num_ref_models: 3}
ramia:
  range_function: {name: missing_values, columns: 8}
  sample_size: 5
  center: perturbed
"""


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(plots, "png", lambda figure: b"a picture")
    monkeypatch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "ramia.yaml"
    path.write_text(TINY.replace("LOG", str(tmp_path / "run")))
    return path


def run(config, *changes):
    return main.main(["--cf", str(config), *(["--set", *changes] if changes else [])])


def report(config) -> Path:
    return config.parent / "run/report/ramia"


def result(config, target=0):
    with np.load(report(config) / f"attack_result_{target}.npz") as arrays:
        return dict(arrays)


def row(config):
    (found,) = csv.DictReader((report(config) / "ramia.csv").read_text().splitlines())
    return found


def signals(config):
    return {path: path.stat().st_mtime_ns for path in (config.parent / "run/signals").glob("ramia_*/*.npy")}


@pytest.fixture
def doubled():
    """A dataset in which every record is there twice: a record's range holds its double."""

    @DATASETS.register("doubled")
    def doubled(data_dir, seed) -> AuditData:
        once = DATASETS["synthetic_tabular"](data_dir, seed, num_records=160, num_features=60, num_classes=3, noise=6.0)
        x, y = (np.concatenate([part, part]) for part in (once.pool.x, once.pool.y))
        return AuditData(Records(x, y), once.population, num_classes=3)

    yield
    del DATASETS["doubled"], DATASETS.facts["doubled"]


def check_range_level(config, aggregation):
    """All that is reported has one entry a range, and is the aggregate of that range's samples."""
    found = result(config)
    n = len(found["ranges"])
    assert found["scores"].shape == found["memberships"].shape == (n,) and found["sample_scores"].shape == (n, 5)
    expected = aggregation(found["sample_scores"])
    assert np.array_equal(found["scores"], expected)
    assert found["auc"] == pytest.approx(auc(expected, found["memberships"]))
    assert float(row(config)["auc_ramia"]) == pytest.approx(auc(expected, found["memberships"]))
    return expected


def test_what_is_reported_is_about_ranges(config):
    assert run(config, "ramia.aggregation={name: trimmed_mean, q_s: 0.6, q_e: 1.0}") == 0
    scores = check_range_level(config, lambda s: trimmed_mean(s, q_s=0.6, q_e=1.0))
    found = row(config)
    assert found["ranges"] == "180" and found["member_ranges"] == "90" and found["include_center"] == "False"
    assert found["center"] == "perturbed" and found["aggregation"] == "mean from quantile 0.6 to 1"
    ranges = list(csv.DictReader((report(config) / "ranges_0.csv").read_text().splitlines()))
    assert [float(one["RaMIA over the range"]) for one in ranges] == pytest.approx(scores)
    assert sum(int(one["range_membership"]) for one in ranges) == 90
    page = (config.parent / "run/report/index.html").read_text()
    assert "Range membership (RaMIA)" in page and "the center not among them" in page
    assert {"ROC.png", "ROC_log.png", "attack_result_0.csv"} <= {path.name for path in report(config).iterdir()}


@pytest.mark.parametrize("planted", [lambda self, scores: scores.mean(axis=1), lambda self, scores: scores[:, 0]])
def test_a_planted_untrimmed_report_would_be_noticed(config, monkeypatch, planted):
    monkeypatch.setattr(Aggregation, "__call__", planted)
    assert run(config, "ramia.aggregation={name: trimmed_mean, q_s: 0.6, q_e: 1.0}") == 0
    with pytest.raises(AssertionError):
        check_range_level(config, lambda s: trimmed_mean(s, q_s=0.6, q_e=1.0))


def test_ranges_around_training_points_are_told_and_the_tuned_choice_is_in_the_result(config):
    assert run(config) == 0
    found = row(config)
    assert float(found["auc_ramia_low"]) > 0.5 and found["aggregation_tuned"] == "True" and found["aggregation"]
    assert "tuned on rehearsals" in (config.parent / "run/report/index.html").read_text()


def test_where_models_learnt_nothing_no_range_is_told(config):
    assert run(config, "train.learning_rate=1e-12") == 0
    found = row(config)
    assert float(found["auc_ramia_low"]) < 0.5 < float(found["auc_ramia_high"])
    assert "no difference can be seen" in (config.parent / "run/report/index.html").read_text()


@pytest.mark.slow
def test_the_same_config_gives_the_same_bytes_whatever_the_blocks(config, monkeypatch):
    assert run(config) == 0
    whole, tables = signals(config), {p.name: p.read_bytes() for p in report(config).glob("*.[cn][sp][vz]")}
    monkeypatch.setattr("audit.ramia_samples.BLOCK_BYTES", 40 * 6 * 60 * 4)  # 40 ranges at a time
    assert run(config, f"run.log_dir={config.parent / 'run2'}") == 0
    blocks = list((config.parent / "run2/signals").glob("ramia_*/*.npy"))
    assert len(blocks) == 5 * len(whole)
    again = config.parent / "run2/report/ramia"
    assert tables and tables == {name: (again / name).read_bytes() for name in tables}


@pytest.mark.slow
def test_a_second_run_asks_nothing_and_other_ranges_are_asked_anew(config):
    assert run(config) == 0
    before, first = signals(config), result(config)["sample_scores"]
    assert run(config) == 0
    assert signals(config) == before
    assert run(config, "ramia.aggregation=max") == 0  # nothing that models are asked for
    assert signals(config) == before
    assert run(config, "ramia.range_function={name: missing_values, columns: 9}") == 0
    assert len(signals(config)) == 2 * len(before) and not np.array_equal(result(config)["sample_scores"], first)
    assert run(config) == 0
    assert np.array_equal(result(config)["sample_scores"], first)


def test_the_attack_at_the_record_itself_is_the_membership_audit(config):
    """center: record, and the same attack at the center alone: the very scores of audit.algorithm."""
    assert run(config, "ramia.center=record") == 0
    mia = np.load(config.parent / "run/report/exp/attack_result_0.npz")
    found = result(config)
    assert np.array_equal(found["LiRA at the center only/scores"], mia["LiRA/scores"])
    assert np.array_equal(found["memberships"], mia["memberships"])


def test_an_included_center_is_the_first_sample(config):
    assert run(config, "ramia.include_center=true", "ramia.attack=LOSS") == 0
    found = result(config)
    assert found["sample_scores"].shape[1] == 5 and row(config)["include_center"] == "True"
    assert np.array_equal(found["sample_scores"][:, 0], found["LOSS at the center only/scores"])
    assert run(config, "ramia.attack=LOSS") == 0
    found = result(config)
    assert not (found["sample_scores"] == found["LOSS at the center only/scores"][:, None]).any(axis=0).all()


def test_perturbed_centers_are_not_the_records(config):
    assert run(config, "ramia.attack=LOSS", "audit.algorithm=LOSS") == 0
    mia = np.load(config.parent / "run/report/exp/attack_result_0.npz")
    assert not np.array_equal(result(config)["LOSS at the center only/scores"], mia["LOSS/scores"])


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["LOSS", "AttackP", "AttackR", "LiRA", "RMIA", "BASE", "BaVarIA", "Calibration"])
def test_any_attack_can_be_the_base(config, attack):
    assert run(config, f"ramia.attack={attack}", "audit.algorithm=LOSS", "train.epochs=2") == 0
    assert result(config)["scores"].shape == (180,)


@pytest.mark.usefixtures("doubled")
class TestDoubles:
    def test_a_range_that_holds_only_another_training_point_is_a_member(self, config):
        assert run(config, "data={dataset: doubled}", "ramia.attack=LOSS") == 0
        ranges = list(csv.DictReader((report(config) / "ranges_0.csv").read_text().splitlines()))
        member = np.load(config.parent / "run/models/memberships.npy")[0]
        held = member | np.roll(member, len(member) // 2)  # the record or its double
        assert [int(one["range_membership"]) for one in ranges] == [int(held[int(one["index"])]) for one in ranges]
        contested = sum(held & ~member)
        assert int(row(config)["hold_only_another_record"]) == contested > 10
        assert int(row(config)["own_record_member"]) + contested == int(row(config)["member_ranges"])

    def test_or_it_is_dropped(self, config):
        assert run(config, "data={dataset: doubled}", "ramia.attack=LOSS", "ramia.neighbours=drop") == 0
        found = row(config)
        assert int(found["ranges"]) == 240 - int(found["hold_only_another_record"]) < 230
        assert found["member_ranges"] == found["own_record_member"]

    def test_references_count_as_in_if_they_know_the_double(self, config, monkeypatch):
        """And ranges that no rehearsal could compare are left out, and counted."""
        seen = []
        score = audit.ramia_evidence.scored
        monkeypatch.setattr(audit.ramia_evidence, "scored", lambda *given: (seen.append(given[1]), score(*given))[1])
        assert run(config, "data={dataset: doubled}") == 0
        evidence = seen[0]
        member = np.load(config.parent / "run/models/memberships.npy")
        half = member.shape[1] // 2
        kept = result(config)["ranges"]
        held = (member | np.roll(member, half, axis=1))[2:, kept]
        assert np.array_equal(evidence.trained_on, np.repeat(held, 5, axis=1))
        assert np.array_equal(evidence.pair, [1, 1, 2, 2, 3, 3])
        found = row(config)
        assert int(found["ranges"]) == len(kept) == 240 - int(found["undecidable"]) < 240

    def test_ranges_that_hold_everything_are_an_error(self, config, capsys):
        assert (
            run(
                config, "data={dataset: doubled}", "ramia.range_function={name: l2, radius: 100}", "ramia.center=record"
            )
            == 2
        )
        message = capsys.readouterr().err
        assert "ramia.range_function: 240 of 240 ranges hold training points of every reference model" in message


@pytest.mark.slow
def test_images_work_too(config):
    changes = ["data={dataset: digits, population_fraction: 0.8}", "audit.queries=2", "train.epochs=3"]
    geometric = "ramia.range_function={name: geometric, transformations: [rotate, {name: shift, pixels: 1}], probes: 2}"
    assert run(config, *changes, geometric) == 0
    assert row(config)["range_function"] == "pictures after rotate, shift"
    assert run(config, *changes, "ramia.range_function={name: l2, radius: 10}") == 0


@pytest.mark.slow
def test_models_from_elsewhere_are_asked_about_the_same_samples(config):
    """Our own models, given as files: range for range the same scores, and DUCI's share with its interval."""
    assert run(config, "ramia.attack=LiRA") == 0
    raw = yaml.safe_load(config.read_text())
    expected, trained = result(config), config.parent / "run"
    raw["run"]["log_dir"] = str(config.parent / "given")
    raw |= {"model": {"folder": str(trained)}, "audit": {"algorithm": ["LiRA"]}, "duci": {"attack": "LOSS"}}
    raw["duci"]["min_advantage"] = 0
    del raw["train"]
    given = config.parent / "given.yaml"
    given.write_text(yaml.safe_dump(raw))
    assert main.main(["--cf", str(given), "--set", "model.name={name: mlp, hidden: [32]}"]) == 0
    with np.load(config.parent / "given/report/ramia/attack_result_0.npz") as found:
        assert np.array_equal(found["sample_scores"], expected["sample_scores"])
        assert np.array_equal(found["memberships"], expected["memberships"])
    with (config.parent / "given/report/duci/usage.csv").open() as file:
        first = next(csv.DictReader(file))
    assert float(first["raw_low"]) < float(first["truth"]) == 0.5 < float(first["raw_high"])


TEXT = """\
run: {log_dir: LOG, random_seed: 7, workers: 1}
data: {dataset: text_file, file: FILE}
train: {model_name: {name: gpt2_tiny, width: 32, layers: 1, heads: 1}, learning_rate: 0.01, batch_size: 8, epochs: 25}
audit: {algorithm: [LOSS], num_ref_models: 2}
ramia: {range_function: word_replace, mask_model: population, num_masks: 2, sample_size: 4, attack: LiRA}
duci: {size: 20, min_advantage: 0}
"""


@pytest.mark.slow
def test_ranges_of_texts_are_told(config, capsys):
    """And the share of them that was used, by the reference attack."""
    words = ["red", "cat", "sees", "the", "a", "old", "bird", "new", "dog", "hears", "blue", "house", "near", "sea"]
    lines = [" ".join(stream(0, "line", i).choice(words, 12)) + "." for i in range(60)]
    file = config.with_name("mine.txt")
    file.write_text("\n".join(lines))
    config.write_text(TEXT.replace("LOG", str(config.parent / "run")).replace("FILE", str(file)))
    assert run(config) == 0
    assert row(config)["range_function"] == "texts with up to 2 words replaced, drawn from the population's words"
    assert float(row(config)["auc_ramia_low"]) > 0.5 and result(config)["sample_scores"].shape == (45, 4)
    with (config.parent / "run/report/duci/usage.csv").open() as file:
        (first,) = csv.DictReader(file)
    assert float(first["raw_low"]) < float(first["truth"]) < float(first["raw_high"])
    assert "Calibration (on=loss)" in (config.parent / "run/report/index.html").read_text()
    capsys.readouterr()
    for change, message in (
        ("ramia.mask_model=/no/where", "ramia.mask_model: '/no/where' cannot be loaded as a masked language model"),
        ("ramia.attack=MinK", "ramia.attack: MinK reads single tokens: on ranges, take one of whole texts"),
        (
            "ramia={range_function: l2, radius: 1}",
            "ramia.range_function: l2 works on images and features, and text_file has",
        ),
        (
            "ramia={range_function: missing_values, num_missing_feats: 1}",
            "missing_values works on features, and text_file has",
        ),
    ):
        assert run(config, change) == 2
        message_ = capsys.readouterr().err
        assert message in message_


ORIGINAL = {
    "purchase": ({"range_function": "l2", "sample_size": 10, "radius": 10}, {"radius": 10.0}),
    "purchase_missingvalues": (
        {
            "range_function": "missing_values",
            "sample_size": 10,
            "num_missing_feats": 10,
            "col_ranges": [[0, 1]] * 10,
            "is_categorical": True,
        },
        {"columns": 10, "col_ranges": [(0.0, 1.0)] * 10, "imputation": "categorical"},
    ),
    "agnews": (
        {
            "range_function": "word_replace",
            "sample_size": 10,
            "mask_model": "population",
            "mask_tokenizer": "population",
            "num_masks": 5,
        },
        {"mask_model": "population", "mask_tokenizer": "population", "num_masks": 5, "top_k": 50},
    ),
    "cifar10": (
        {
            "range_function": "geometric",
            "sample_size": 3,
            "transformations": ["horizontal_flip", "vertical_flip", "rotate"],
        },
        {"transformations": ["horizontal_flip", "vertical_flip", "rotate"], "probes": 32, "tolerance": 0.1},
    ),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_tools_keys_are_understood(config, name):
    block, expected = ORIGINAL[name]
    raw = yaml.safe_load(config.read_text()) | {"ramia": block}
    if name == "cifar10":
        raw["data"] = {"dataset": "digits"}
    if name == "agnews":
        raw |= {
            "data": {"dataset": "docstrings", "num_records": 60},
            "train": {"model_name": "gpt2_tiny", "epochs": 1, "learning_rate": 1e-3},
        }
    config.write_text(yaml.safe_dump(raw))
    checked = load(config)
    (call,) = checked.modules
    assert audit.ramia.setup_of(prepared(checked), **call.settings).range_settings == expected


def test_a_column_that_is_not_there_is_named_in_its_own_line(config, capsys):
    """Names of the dataset's columns work as numbers do; the original tool's key has its own line."""
    text = config.read_text()
    start = text.index("  range_function")
    named = (
        "  range_function:\n    name: missing_values\n    columns:\n      - item_7\n      - itm_8\n  sample_size: 2\n"
    )
    config.write_text(text[:start] + named)
    line = config.read_text().splitlines().index("      - itm_8") + 1
    assert run(config) == 2
    expected = (
        f"{config.name}:{line}: ramia.range_function.columns.1: there is no column 'itm_8'; did you mean 'item_8'"
    )
    assert expected in capsys.readouterr().err
    config.write_text(config.read_text().replace("itm_8", "item_8"))
    checked = load(config)
    ranges = audit.ramia.setup_of(prepared(checked), **checked.modules[0].settings).ranges
    assert ranges.columns == (7, 8)
    config.write_text(text[:start] + "  range_function: missing_values\n  num_missing_feats: 61\n  sample_size: 2\n")
    assert run(config) == 2
    assert "ramia.num_missing_feats: 61 is more than the 60" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["LiRA", "RMIA"])
def test_memory_does_not_grow_with_the_ranges_but_for_a_number_a_sample(config, monkeypatch, attack):
    """Eight references, and a tuned aggregation: the signals alone would be 36 bytes a sample and signal."""
    samples, references = 10, 8

    def peak(ranges):
        data = [f"data.num_records={ranges * 4 // 3}", "data.num_features=9", "data.num_classes=2"]
        block = ["audit.num_ref_models=4", f"ramia.sample_size={samples}", f"ramia.attack={attack}"]
        checked = load(config, data + block)
        session = prepared(checked)
        setup = audit.ramia.setup_of(session, **checked.modules[0].settings)
        session = replace(session, config=replace(checked, attacks=(setup.base,)))
        draw = stream(0, "population").standard_normal((references + 1, 1, 200)).astype(np.float32)
        single = Evidence(draw[0][:, :0], draw[1:, :, :0], np.zeros((references, 0), bool), draw[0], draw[1:])
        monkeypatch.setattr(audit.ramia_evidence, "evidence", lambda *_: single)
        monkeypatch.setattr(audit.ramia_evidence, "read", signal_of)
        seen = Ranges(session, setup, 0, session.plan.member, pairs_of(session.plan.member), np.arange(ranges))
        tracemalloc.start()
        found, rehearsed, _ = seen.scores(slice(1, None), rehearsals=4)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.shape == (ranges, samples) and len(rehearsed) == 4
        return most

    def signal_of(session, setup, model, signal, ranges, columns):
        noise = stream(0, "signal", int(model), int(ranges[0])).standard_normal((1, len(ranges), samples))
        return (noise + 2 * session.plan.member[model, ranges][:, None]).astype(np.float32)

    monkeypatch.setattr(audit.ramia_evidence, "EVIDENCE_BYTES", 2**19)
    few, many = peak(3_000), peak(9_000)
    grown = (many - few) / (6_000 * samples)
    assert grown < 1.1 * 8 * (1 + 4)  # a float64 for the target and each rehearsal
    assert few - 3_000 * samples * grown < 8 * 2**19


def test_an_attack_that_does_not_say_what_points_share_is_given_all_of_them(config, monkeypatch):
    sizes = []

    @ATTACKS.register("centred", needs_references=False, needs_population=False, min_pairs=0)
    def centred(evidence):
        sizes.append(evidence.target.shape[1])
        return evidence.target.mean(axis=0) - evidence.target.mean()

    monkeypatch.setattr(audit.ramia_evidence, "EVIDENCE_BYTES", 100)
    assert run(config, "ramia.attack=centred", "audit.algorithm=LOSS", "train.epochs=1") == 0
    assert set(sizes) == {180 * 5, 180}


def test_means_over_targets_count_a_pair_of_twins_once():
    estimates = [Estimate(v, v - 0.1, v + 0.2) for v in (0.6, 0.7, 0.8, -0.3)]
    one = audit.ramia_report.mean_of(estimates[2:3], [5])
    assert one == estimates[2]
    pair = audit.ramia_report.mean_of(estimates[:2], [7, 7])
    assert (pair.value, pair.low, pair.high) == pytest.approx((0.65, 0.5, 0.8))
    several = audit.ramia_report.mean_of(estimates, [0, 0, 1, 1])
    t, half = 12.706, abs(0.65 - 0.25) / 2  # Student's with one degree of freedom, and the standard error
    assert (several.value, several.high) == pytest.approx((0.45, min(1, 0.45 + t * half)), abs=1e-3)


GEOMETRIC = "ramia.range_function={name: geometric, transformations: [rotate]}"


@pytest.mark.parametrize(
    "change, message",
    [
        ("ramia.range_function={name: l2, radius: 0}", "range_function: l2: radius should be greater than 0, got 0"),
        ("ramia={range_function: l2, radius: -1}", "radius: should be greater than 0"),
        ("ramia={range_function: l2}", "range_function: l2: radius is missing"),
        ("ramia={range_function: geometrik}", "no range function is called 'geometrik'; did you mean 'geometric'?"),
        ("ramia={range_function: geometric, radius: 3}", "ramia.radius: geometric has no such setting"),
        ("ramia.sample_size=1", "sample_size: should be greater than or equal to 2"),
        (GEOMETRIC, "geometric works on images, and synthetic_tabular has features"),
        ("data={dataset: digits}", "missing_values works on features, and digits has images"),
        ("ramia.range_function={name: missing_values, columns: [60]}", "there is no column 60"),
        (
            "ramia.range_function={name: missing_values, columns: 2, imputation: categorical}",
            "3 different records beside the center, fewer than the 5 samples",
        ),
        ("ramia.aggregation={name: top_k, k: 6}", "the top 6 of 5 samples"),
        ("ramia.aggregation=meen", "no aggregation is called 'meen'; did you mean 'mean'?"),
        ("ramia.attack=LIRAA", "no attack is called 'LIRAA'; did you mean 'LiRA'?"),
        ("ramia.attack={name: RMIA, gamma: -1}", "gamma should be greater than 0"),
        ("ramia.samplesize=3", "unknown key; did you mean 'sample_size'?"),
        ("ramia.center=somewhere", "should be 'record' or 'perturbed'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(config, capsys, change, message):
    assert run(config, change) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1, error
    assert not (config.parent / "run").exists()


def test_an_attack_without_its_references_is_refused(config, capsys):
    assert run(config, "audit={algorithm: LOSS}", "ramia.attack=LiRA") == 2
    assert "ramia.attack: LiRA needs audit.num_ref_models of at least 1" in capsys.readouterr().err
