"""`data.owner` and `owners:` in whole runs: who is in with whom, what is written, what is refused."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import main
from audit.owners import audit_target, setup_of
from audit.pipeline import audit_target as attacked
from audit.pipeline import prepared
from audit.plan import make_plan
from core.config import load
from core.errors import UserError
from core.rng import stream

RUN = """\
run: {{log_dir: {folder}/run, random_seed: 7, num_experiments: {targets}, workers: 1}}
data: {{dataset: files, data_dir: {folder}, file: table.csv{data}}}
train: {{model_name: {{name: mlp, hidden: [32]}}, epochs: 20, batch_size: 16, learning_rate: 0.1, device: cpu}}
audit: {{algorithm: [LOSS, Calibration, LiRA], num_ref_models: {pairs}, device: cpu}}
{blocks}
"""


def table(folder, owners=60, most=8, seed=1):
    """People with 1 to `most` records each, alike among themselves."""
    draw = stream(seed, "people")
    with open(folder / "table.csv", "w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["person", *[f"x{k}" for k in range(8)], "label"])
        for person in range(owners):
            middle = draw.standard_normal(8)
            for _ in range(draw.integers(1, most + 1)):
                x = middle + draw.standard_normal(8)
                write.writerow([f"p{person:02d}", *x.round(4), int(x[:2].sum() + 2 * draw.standard_normal() > 0)])


def config(folder, data=", owner: person", blocks="owners: {}", targets=2, pairs=4):
    path = folder / "people.yaml"
    path.write_text(RUN.format(folder=folder, data=data, blocks=blocks, targets=targets, pairs=pairs))
    return path


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    from audit import plots

    folder = tmp_path_factory.mktemp("people")
    table(folder)
    path = config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "png", lambda figure: b"a picture")
        patch.setattr(plots, "svg", lambda figure, name, about: "<svg></svg>")
        assert main.main(["--cf", str(path)]) == 0
    return path


def test_memberships_are_drawn_by_owner_and_twins_share_the_owners_out():
    owner = stream(1, "whose").integers(0, 21, 400)
    plan = make_plan(400, 4, 3, 5, owner)
    for row in plan.member:
        inside = {int(o) for o in owner[row]}
        assert not inside & {int(o) for o in owner[~row]}  # wholly in or wholly out
    assert (plan.member[0::2] == ~plan.member[1::2]).all()
    assert len({int(o) for o in owner[plan.member[0]]}) == 10
    more = make_plan(400, 4, 9, 5, owner)
    assert np.array_equal(more.member[:8], plan.member)  # more references leave those that are there as they are
    alone = make_plan(400, 4, 3, 5)
    assert not np.array_equal(alone.member[0], plan.member[0])


def test_no_owner_is_in_the_pool_and_in_the_population(finished):
    data = prepared(load(finished)).data
    assert not set(data.pool.groups["person"]) & set(data.population.groups["person"])
    assert 0.1 < len(data.population) / (len(data.pool) + len(data.population)) < 0.4


def test_owners_are_told_better_than_records_and_every_file_says_the_same(finished):
    report = finished.parent / "run/report"
    first, _ = rows_of(report / "owners/owners.csv")
    assert float(first["auc_owners"]) > float(first["auc_records"]) + 0.05
    assert float(first["auc_owners_low"]) < float(first["auc_owners"]) < float(first["auc_owners_high"])
    rows = rows_of(report / "owners/owners_0.csv")
    assert len(rows) == int(first["owners"]) and sum(int(row["membership"]) for row in rows) == int(first["members"])
    assert [row["owner"] for row in rows] == sorted(row["owner"] for row in rows)
    for row in rows:
        assert 0 < float(row["p_value"]) <= 1 and 0 <= float(row["owner_fpr"]) <= 1
    with np.load(report / "owners/attack_result_0.npz") as arrays:
        assert arrays["owners"].tolist() == [row["owner"] for row in rows]
    page = (report / "index.html").read_text()
    assert "Whose records were used" in page and "owners/owners_1.csv" in page and first["attack"].split(",")[0] in page
    by_target = rows_of(report / "owners/attack_result_0.csv")
    assert by_target[0]["resolvable_at_fpr_0.01"] == "False"  # 45 owners cannot show 1%


def test_no_score_of_an_owner_knows_who_the_targets_members_are(finished):
    session = prepared(load(finished))
    setup = setup_of(session)
    result = attacked(session, 0)
    flipped = session.plan.member.copy()
    flipped[0] = ~flipped[0]
    other = replace(session, plan=replace(session.plan, member=flipped))
    ours, theirs = (audit_target(one, setup, result) for one in (session, other))
    assert ours.result.attacks[0].scores.tobytes() == theirs.result.attacks[0].scores.tobytes()
    assert ours.way == theirs.way and ours.tried == theirs.tried
    assert np.array_equal(ours.result.member, ~theirs.result.member)
    again = audit_target(session, setup, result)
    assert again.result.attacks[0].scores.tobytes() == ours.result.attacks[0].scores.tobytes()


def test_the_blind_baseline_sees_one_record_of_each_owner(finished):
    """With two, a classifier would know the owner again: records that are alike, in or out together."""
    from audit.blind import _independent, _linear, cross_fitted, told
    from core.metrics import auc
    from modules.checks.blind import stratified_folds

    session = prepared(load(finished))
    rows = _independent(session, stream(1, "blind"))
    owner = session.data.pool.groups["person"]
    assert sorted(owner[session.points[rows]]) == sorted(set(owner))
    blind = told(session, 0)
    assert blind and not blind.tells and blind.records == len(rows)
    member = session.plan.member[0, session.points]
    x = owner[:, None] == np.unique(owner)  # what gives an owner away at its worst
    fold = stratified_folds(member, stream(2, "folds"))
    assert auc(cross_fitted(x.astype(float), _linear, member, fold), member) > 0.7


def test_other_ways_of_scoring_can_be_asked_for(finished, tmp_path):
    session = prepared(load(finished))
    result = attacked(session, 0)
    for given in (
        {"aggregation": "max", "calibration": "none"},
        {"aggregation": {"name": "top_k", "k": 2}, "calibration": "owner", "attack": "lira"},
        {"aggregation": "log_mean_exp", "min_records": 3},
    ):
        found = audit_target(session, setup_of(session, **given), result)
        assert found.way.aggregation.name == (
            given["aggregation"] if isinstance(given["aggregation"], str) else "top_k"
        )
        if "min_records" in given:
            assert found.result.member.size < 45
        if "attack" in given:
            assert "LiRA" in found.result.attacks[0].attack and found.way.by_owner


def test_other_memberships_are_refused_by_the_name_of_the_setting(finished, capsys):
    text = finished.read_text()
    try:
        finished.write_text(text.replace(", owner: person", ", groups: [person]").replace("owners: {}", ""))
        assert main.main(["--cf", str(finished)]) == 2
        assert "data.owner" in capsys.readouterr().err
    finally:
        finished.write_text(text)


@pytest.mark.parametrize(
    ("data", "blocks", "said"),
    [
        (", groups: [person]", "owners: {}", "whose records are they? name a group column"),
        (", groups: [person]", "owners: {column: person}", "memberships are drawn record by record: say data.owner"),
        (", owner: person", "owners: {column: label}", "no column of groups 'label'"),
        (", owner: nobody", "owners: {}", "nobody"),
        (", owner: person", "owners: {attack: RMIA}", "owners.attack: 'RMIA' is none of audit.algorithm: LOSS"),
        (", owner: person", "owners: {aggregation: median}", "owners.aggregation: no aggregation is called 'median'"),
        (", owner: person", "owners: {aggregation: {name: top_k, k: 0}}", "owners.aggregation: top_k: k"),
        (", owner: person", "owners: {min_records: 99}", "owners.min_records: no owner has 99 audited records"),
        (", owner: person", "owners: {calibration: sideways}", "calibration"),
    ],
)
def test_mistakes_are_said_before_anything_is_trained(tmp_path, capsys, data, blocks, said):
    table(tmp_path)
    assert main.main(["--cf", str(config(tmp_path, data, blocks)), "--check"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_with_one_pair_of_references_owners_are_scored_by_the_mean_and_calibration_by_owner_is_refused(
    tmp_path, capsys
):
    table(tmp_path, owners=30)
    path = config(tmp_path, blocks="owners: {calibration: owner}", targets=1, pairs=1)
    assert main.main(["--cf", str(path), "--check"]) == 2
    assert "owners.calibration" in capsys.readouterr().err
    path = config(tmp_path, targets=1, pairs=1)
    session = prepared(load(path))
    assert setup_of(session).attack is None


def test_records_that_are_not_the_datasets_own_have_no_owner(tmp_path, capsys):
    path = config(tmp_path)
    path.write_text(
        path.read_text().replace(f"dataset: files, data_dir: {tmp_path}, file: table.csv", "dataset: digits")
    )
    assert main.main(["--cf", str(path), "--check"]) == 2
    assert "data.owner: the data have no column of groups 'person'" in capsys.readouterr().err


def test_population_records_of_the_pools_owners_are_left_out_where_the_population_was_given(tmp_path, caplog):
    table(tmp_path)
    lines = (tmp_path / "table.csv").read_text().splitlines()
    (tmp_path / "others.csv").write_text("\n".join([*lines[:40], *(f"q{line}" for line in lines[1:60])]))
    session = prepared(load(config(tmp_path, ", owner: person, population: others.csv")))
    assert len(session.data.population) == 59
    assert "39 of 98 population records are of owners in the pool" in caplog.text


def test_images_have_owners_by_a_table_and_texts_by_a_column(tmp_path, capsys):
    from PIL import Image

    draw = stream(3, "pictures")
    lines = ["path,painter"]
    for k in range(48):
        place = f"{'ab'[k % 2]}/{k}.png"
        (tmp_path / "pictures" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (6, 6)).astype(np.uint8)).save(tmp_path / "pictures" / place)
        lines.append(f"{place},m{k % 8}")
    (tmp_path / "painters.csv").write_text("\n".join(lines))
    path = config(tmp_path, ", owner: painter, about: painters.csv")
    path.write_text(path.read_text().replace("file: table.csv", "file: pictures"))
    session = prepared(load(path))
    assert session.data.is_image
    painter, ids = session.data.pool.groups["painter"], session.data.pool.ids
    assert all(
        name == f"m{int(place.split('/')[1].split('.')[0]) % 8}" for name, place in zip(painter, ids, strict=True)
    )
    (tmp_path / "painters.csv").write_text("\n".join(lines[:-1]))
    assert main.main(["--cf", str(path), "--check"]) == 2
    assert "it has no row for 1 images" in capsys.readouterr().err
    path.write_text(path.read_text().replace(", about: painters.csv", ""))
    assert main.main(["--cf", str(path), "--check"]) == 2
    assert "data.about" in capsys.readouterr().err

    texts = ["text,author", *(f'"A sentence of number {k}, and its end.",a{k % 9}' for k in range(90))]
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    text = path.read_text().partition("data:")[0] + (
        f"data: {{dataset: text_file, data_dir: {tmp_path}, file: texts.csv, owner: author}}\n"
        "train: {model_name: {name: gpt2_tiny, width: 16, layers: 1, heads: 1}, learning_rate: 0.001, "
        "epochs: 1, batch_size: 8}\n"
        "audit: {algorithm: LOSS, num_ref_models: 2}\nowners: {}\n"
    )
    path.write_text(text)
    session = prepared(load(path))
    assert not set(session.data.pool.groups["author"]) & set(session.data.population.groups["author"])
    assert len(setup_of(session).held.size) == len(set(session.data.pool.groups["author"]))


def test_owners_of_given_models_count_where_they_are_in_or_out_as_a_whole(finished):
    """Partial owners are left out, and said to be."""
    session = prepared(load(finished))
    member = session.plan.member.copy()
    owner = session.data.pool.groups["person"]
    for name in sorted(set(owner))[:10]:
        places = np.flatnonzero(owner == name)
        member[0, places[:1]] = ~member[0, places[:1]]
    partial = replace(session, plan=replace(session.plan, member=member))
    setup = setup_of(partial)
    several = sum(np.sum(owner == name) > 1 for name in sorted(set(owner))[:10])
    found = audit_target(partial, setup, attacked(partial, 0))
    assert len(found.share) - len(found.judged) == several
    with pytest.raises(UserError, match="trained on 0 wholly"):
        from audit.owners import check

        check(replace(session, plan=replace(session.plan, member=np.zeros_like(member))))
