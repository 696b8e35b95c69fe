"""The report's files say what the Summary says, exactly, the same way twice, and to anybody safely."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from audit import tables
from audit.report import page, print_summary, rate, seconds_text, terminal_table, time_analysis, write_report
from audit.results import AuditResult, Check, TargetResult
from audit.summary import latex
from core.metrics import across_models, auc
from tests.audit.fixtures import ATTACKS, attack_result, audit_result, risk

HOSTILE = '<script>alert("x")</script>&amp;\'"'


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    result, folder = audit_result(points=3000, attacks=ATTACKS[:3]), tmp_path_factory.mktemp("single") / "report"
    write_report(result, folder)
    return result, folder


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    result = audit_result(targets=2, points=900, offset=5.0, warnings=("Only two pairs.",))
    folder = tmp_path_factory.mktemp("several") / "report"
    write_report(result, folder)
    return result, folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def render(result: AuditResult) -> str:
    return page(result, tables.averages(result))


# --- files -----------------------------------------------------------------------------------------------------


def test_every_promised_file_is_there_and_nothing_else(several) -> None:
    _, folder = several
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    per_target = ["ROC_{}.png", "ROC_log_{}.png", "attack_result_{}.csv", "attack_result_{}.npz", "records_{}.csv"]
    top = ["ROC_average.png", "ROC_log_average.png", "attack_result_average.csv", "index.html", "log_time_analysis.log"]
    top += ["groups.csv", "records.csv", "summary.json", "tables.tex"]
    assert found == sorted(top + [f"exp/{name.format(t)}" for name in per_target for t in range(2)])


def test_images_decode(several) -> None:
    _, folder = several
    for path in folder.rglob("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.load()
            assert image.size == (1110, 735)


def test_the_csv_of_a_target_holds_its_summary_to_the_last_bit(single) -> None:
    result, folder = single
    for row, attack in zip(rows(folder / "exp/attack_result_0.csv"), result.targets[0].attacks, strict=True):
        summary = attack.summary
        assert row["attack"] == attack.attack
        assert (int(row["members"]), int(row["non_members"])) == (summary.members, summary.non_members)
        assert [float(row[f"auc{end}"]) for end in ("", "_low", "_high")] == list(vars(summary.auc).values())
        assert float(row["balanced_accuracy"]) == summary.balanced_accuracy
        assert float(row["certified_fpr"]) == summary.certified_fpr
        for point, name in zip(summary.at_fpr, ("0.01", "0.001", "0.0001", "0"), strict=True):
            for key, estimate in (("tpr", point.tpr), ("achieved_fpr", point.fpr)):
                ends = [float(row[f"{key}_at_fpr_{name}{end}"]) for end in ("", "_low", "_high")]
                assert ends == list(vars(estimate).values())
            assert float(row[f"threshold_at_fpr_{name}"]) == point.threshold
            assert row[f"resolvable_at_fpr_{name}"] == str(point.resolvable)


def test_the_npz_has_the_original_keys_and_each_attacks_without_pickle(single) -> None:
    result, folder = single
    target = result.targets[0]
    with np.load(folder / "exp/attack_result_0.npz", allow_pickle=False) as npz:
        original = {"fpr", "tpr", "auc", "one_fpr", "one_tenth_fpr", "zero_fpr", "scores"}
        assert set(npz) == original | {"memberships"} | {f"{a.attack}/{k}" for a in target.attacks for k in original}
        assert npz["memberships"].dtype == bool
        np.testing.assert_array_equal(npz["memberships"], target.member)
        for prefix, attack in [("", target.attacks[0]), *((f"{a.attack}/", a) for a in target.attacks)]:
            assert npz[f"{prefix}scores"].dtype == attack.scores.dtype == np.float32
            np.testing.assert_array_equal(npz[f"{prefix}scores"], attack.scores)
            np.testing.assert_array_equal(npz[f"{prefix}fpr"], attack.roc.fpr)
            np.testing.assert_array_equal(npz[f"{prefix}tpr"], attack.roc.tpr)
            one, tenth, _, zero = (point.tpr.value for point in attack.summary.at_fpr)
            scalars = [float(npz[prefix + key]) for key in ("auc", "one_fpr", "one_tenth_fpr", "zero_fpr")]
            assert scalars == [attack.summary.auc.value, one, tenth, zero]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_records_read_back_exactly(dtype: type, tmp_path: Path) -> None:
    result = audit_result(points=40, dtype=dtype)
    write_report(result, tmp_path)
    found = rows(tmp_path / "exp/records_0.csv")
    assert list(found[0]) == ["index", "label", "membership", *ATTACKS[:2], "p_value", "list_p_value", "named"]
    for name, expected in tables.record_columns(result, result.targets[0]).items():
        np.testing.assert_array_equal(np.array([row[name] for row in found], dtype=expected.dtype), expected)


# --- averages --------------------------------------------------------------------------------------------------


def test_the_average_is_over_targets_and_pools_no_scores(several) -> None:
    result, folder = several
    (row, *_) = rows(folder / "attack_result_average.csv")
    attacks = [target.attacks[0] for target in result.targets]
    aucs = np.array([attack.summary.auc.value for attack in attacks])
    pooled = auc(np.concatenate([a.scores for a in attacks]), np.concatenate([t.member for t in result.targets]))
    assert abs(pooled - aucs.mean()) > 0.1, "the fixture's offsets must make pooling wrong"
    interval = across_models(aucs, level=0.95)
    assert float(row["auc"]) == aucs.mean()
    assert float(row["auc_sd"]) == aucs.std(ddof=1)
    assert (float(row["auc_low"]), float(row["auc_high"])) == (interval.low, interval.high)
    assert row["auc_record_low"] == row["auc_record_high"] == ""
    assert row["targets"] == "2"


def test_a_tpr_is_averaged_over_targets_and_resolvable_only_if_it_is_in_each() -> None:
    small, large = audit_result(points=600), audit_result(points=4000)
    mixed = replace(large, targets=(*large.targets, *small.targets))
    (row, *_) = tables.average_rows(tables.averages(mixed))
    tprs = [target.attacks[0].summary.at_fpr[0] for target in mixed.targets]
    assert [tpr.resolvable for tpr in tprs] == [True, False]
    assert row["resolvable_at_fpr_0.01"] is False
    assert row["tpr_at_fpr_0.01"] == np.mean([tpr.tpr.value for tpr in tprs])


def test_a_single_target_has_intervals_over_records_and_none_over_models(single) -> None:
    result, folder = single
    for row, attack in zip(rows(folder / "attack_result_average.csv"), result.targets[0].attacks, strict=True):
        assert float(row["auc_record_low"]) == attack.summary.auc.low
        assert float(row["auc_record_high"]) == attack.summary.auc.high
        assert row["auc_low"] == row["auc_high"] == row["auc_sd"] == ""
        assert row["targets"] == "1"


# --- the same twice --------------------------------------------------------------------------------------------


def test_the_same_result_gives_the_same_bytes(single, tmp_path: Path) -> None:
    result, folder = single
    write_report(result, tmp_path)
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    assert len(files) == 13
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(folder)).read_bytes(), path.name


def test_the_npz_holds_no_time_of_day(single) -> None:
    _, folder = single
    with ZipFile(folder / "exp/attack_result_0.npz") as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_a_second_run_adds_to_the_log_of_timings(tmp_path: Path) -> None:
    for _ in range(2):
        write_report(audit_result(points=40, attacks=ATTACKS[:1]), tmp_path)
    assert (tmp_path / "log_time_analysis.log").read_text().count("stages") == 2


def test_the_log_of_timings_is_aligned_and_adds_up() -> None:
    lines = time_analysis(audit_result(targets=2), datetime(2026, 1, 2, 3, 4, 5)).splitlines()
    assert lines[0] == "2026-01-02 03:04:05  stages"
    timed = [line for line in lines if line.endswith(" s")]
    assert len({len(line) for line in timed}) == 1
    assert len(timed) == 4 + 1 + 2 * 2
    assert [float(line.split()[-2]) for line in timed][4] == pytest.approx(0.5 + 61.25 + 2.0 + 0.3)


# --- the page --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects tags, attributes and visible text; asserts that elements nest."""

    VOID = frozenset({"meta", "br", "link", "img", "hr", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.mark.parametrize("run", ["single", "several"])
def test_the_page_is_well_formed_and_loads_nothing_from_outside(run: str, request: pytest.FixtureRequest) -> None:
    html = (request.getfixturevalue(run)[1] / "index.html").read_text()
    parsed = Page(html)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in parsed.tags}
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            target = attributes.get(name) or ""
            assert "//" not in target and not target.startswith(("data:", "javascript:"))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_link_leads_to_a_file(several) -> None:
    _, folder = several
    links = [a["href"] for tag, a in Page((folder / "index.html").read_text()).tags if tag == "a"]
    assert len(links) >= 14
    assert all((folder / link).is_file() for link in links)


def test_ids_on_the_page_are_unique_and_references_resolve(several) -> None:
    html = (several[1] / "index.html").read_text()
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_hostile_text_anywhere_is_shown_and_not_run(tmp_path: Path) -> None:
    plain = audit_result(points=60, attacks=("A",), warnings=(HOSTILE,))
    target = plain.targets[0]
    attack = replace(target.attacks[0], attack=HOSTILE, notes=(HOSTILE,), settings={HOSTILE: HOSTILE})
    hostile = replace(
        plain,
        targets=(replace(target, attacks=(attack,)),),
        dataset=HOSTILE,
        config=HOSTILE,
        environment={HOSTILE: {HOSTILE: HOSTILE}},
        models=({"id": HOSTILE, "role": HOSTILE},),
        timings=((HOSTILE, 1.0),),
        checks=(Check(HOSTILE, "look", HOSTILE),),
        risk=replace(risk(plain.targets, HOSTILE), attack=HOSTILE, chosen=HOSTILE),
        ids=np.array([HOSTILE] * 60),
    )
    write_report(hostile, tmp_path)
    html = (tmp_path / "index.html").read_text()
    page = Page(html)
    assert "<script" not in html
    assert page.words.count(HOSTILE) >= 18
    assert rows(tmp_path / "exp/attack_result_0.csv")[0]["attack"] == HOSTILE
    with np.load(tmp_path / "exp/attack_result_0.npz", allow_pickle=False) as npz:
        assert f"{HOSTILE}/fpr" in npz


def test_what_cannot_be_resolved_is_marked_and_its_value_not_shown() -> None:
    result = audit_result(points=900, attacks=ATTACKS[:1])
    point = result.targets[0].attacks[0].summary.at_fpr[0]
    assert not point.resolvable
    words = Page(render(result)).words
    assert rate(point.tpr.value) not in words
    assert words.count("not resolvable") >= 6
    assert "With 450 non-members, false positive rates below 2.22% are beyond" in words


def test_a_leak_is_called_a_leak_with_its_interval(single) -> None:
    result, folder = single
    words = Page((folder / "index.html").read_text()).words
    estimate = result.targets[0].attacks[0].summary.auc
    assert "An attack can tell members from non-members better than guessing" in words
    assert f"AUC {estimate.value:.3f}, 95% interval {estimate.low:.3f} to {estimate.high:.3f}" in words
    assert "cannot show that a model is safe" in words


def test_nothing_found_is_never_called_safe() -> None:
    words = Page(render(audit_result(points=900, shift=0.0, attacks=ATTACKS[:3]))).words
    assert "None of the attacks tried did measurably better than guessing" in words
    assert "cannot show that a model is safe" in words
    assert len(re.findall(r"\bsafe\b", words)) == 1


def test_a_leak_only_in_the_tail_is_found() -> None:
    """A tenth of the members stand out, the others rank a little below the non-members: AUC near 0.5."""
    n = 20_000
    member = np.arange(n) % 2 == 0
    scores = np.random.Generator(np.random.PCG64(1)).normal(size=n)
    scores[member] -= 0.19
    scores[member & (np.arange(n) % 20 == 0)] += 10
    target = TargetResult(0, member, (attack_result("A", scores, member),))
    result = replace(audit_result(points=n), targets=(target,))
    verdict = tables.verdict(result, tables.by_strength(tables.averages(result)))
    assert verdict.leaking == 0
    assert verdict.leaks
    assert verdict.headline.startswith("An attack singles out some members")


@pytest.mark.slow
def test_the_verdict_allows_for_the_number_of_attacks_tried() -> None:
    """Of 100 null audits with 9 independent attacks, picked by the best AUC, about 5% may be called a leak."""
    member = np.arange(200) % 2 == 0
    draw = np.random.Generator(np.random.PCG64(2))
    base = audit_result(points=200)
    called = uncorrected = 0
    for _ in range(100):
        attacks = tuple(attack_result(name, draw.normal(size=200), member) for name in ATTACKS)
        result = replace(base, targets=(TargetResult(0, member, attacks),))
        called += tables.verdict(result, tables.by_strength(tables.averages(result))).leaks
        uncorrected += any(attack.summary.auc.low > 0.5 for attack in attacks)
    assert uncorrected > 12
    assert called <= 5 + 3 * np.sqrt(100 * 0.05 * 0.95)


def test_the_summary_is_plain_json_without_nan(several) -> None:
    result, folder = several
    found = json.loads((folder / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["schema"] == 1
    row = tables.averages(result)[0]
    assert found["attacks"][row.attack]["auc"]["value"] == row.auc.value
    assert found["attacks"][row.attack]["tpr"]["at_fpr_0.01"]["value"] == row.at_fpr[0].tpr.value
    assert found["checks"][0] == {"name": "null test", "status": "fine", "finding": "Made up: nothing to find."}
    assert found["exposed_groups"] == {"class": ["7"]}
    assert found["named_members"]["by_target"]["0"] == {"named": 3, "false": 1}


def test_the_table_for_papers_is_latex_whatever_attacks_are_called(several) -> None:
    result, _ = several
    averages = [replace(row, attack=r"a_b & 100% \x{}#$~^<") for row in tables.averages(result)]
    text = latex(averages)
    escaped = r"a\_b \& 100\% \textbackslash{}x\{\}\#\$\textasciitilde{}\textasciicircum{}\textless{} & 0."
    assert escaped in text
    body = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len({line.count(" & ") for line in body}) == 1


def test_records_and_groups_are_written_as_they_are(several) -> None:
    result, folder = several
    records = rows(folder / "records.csv")
    assert [int(row["index"]) for row in records] == result.points.tolist()
    assert [float(row["exposure"]) for row in records] == result.risk.exposure.tolist()
    first, second = rows(folder / "groups.csv")
    assert (first["group"], first["exposed"], first["tpr_at_own_threshold"]) == ("7", "True", "")
    assert (second["group"], second["auc"]) == ("8", "")
    named = rows(folder / "exp" / "records_0.csv")
    assert sum(int(row["named"]) for row in named) == 3
    assert sum(row["list_p_value"] == "nan" for row in named) == len(named) // 2


def test_the_page_says_whether_to_trust_it_and_who_is_at_risk(several) -> None:
    words = Page((several[1] / "index.html").read_text()).words
    for said in (
        "Can these numbers be trusted?",
        "Made up: nothing to find.",
        "3 1 (33.3%)",
        "more exposed than all records together",
        "found in 2 of 2 models",
    ):
        assert said in words, said


def test_an_attack_worse_than_guessing_is_pointed_out() -> None:
    result = audit_result(points=900, shift=-1.0, attacks=ATTACKS[:2])
    assert tables.verdict(result, tables.by_strength(tables.averages(result))).backwards == ATTACKS[1::-1]
    assert "measurably worse than guessing" in Page(render(result)).words


def test_several_targets_say_so_and_show_warnings(several) -> None:
    words = Page((several[1] / "index.html").read_text()).words
    assert "over 2 target models" in words
    assert "Only two pairs." in words
    assert "Target model 1" in words


def test_figures_of_very_many_targets_are_linked_and_not_shown() -> None:
    few, many = (Page(render(audit_result(targets=t, points=40, attacks=("A",)))) for t in (2, 9))
    assert [sum(a.get("role") == "img" for _, a in page.tags) for page in (few, many)] == [9, 3]


def test_models_without_accuracies_leave_dashes() -> None:
    result = replace(audit_result(points=40), models=({"id": 0, "role": "target", "train_acc": None},))
    assert "–" in Page(render(result)).words


# --- numbers and the terminal ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25249, "25.2%"),
        (0.13, "13.0%"),
        (0.0001834, "0.0183%"),
        (1.0, "100%"),
        (0.99999, ">99.9%"),
        (0.0, "0%"),
        (1e-9, "<0.001%"),
        (float("nan"), "–"),
    ],
)
def test_rates_keep_three_digits_and_never_round_to_certainty(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (61.24, "61.2 s"), (725.0, "12 min 5 s"), (12_000.0, "3 h 20 min")]
)
def test_times_are_readable(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_the_terminal_shows_the_strongest_first_and_what_is_not_resolvable(capsys, tmp_path: Path) -> None:
    result = audit_result(points=4000, attacks=ATTACKS[:3], shift=-1.0)  # the last listed is the strongest
    print_summary(result, tmp_path)
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(ATTACKS[:3])]
    assert [line.split()[0] for line in lines] == list(ATTACKS[2::-1])
    point = result.targets[0].attacks[2].summary
    assert f"{point.auc.low:.3f} to {point.auc.high:.3f}" in lines[0]
    assert rate(point.at_fpr[0].tpr.value) in lines[0]
    assert lines[0].endswith("n/r")
    assert str(tmp_path / "index.html") in out
    assert "\x1b" not in out


def test_a_name_is_not_read_as_terminal_markup() -> None:
    from rich.console import Console

    result = audit_result(points=40, attacks=("[red]A[/red]",))
    text = io.StringIO()
    Console(file=text, width=120).print(terminal_table(result))
    assert "[red]A[/red]" in text.getvalue()
