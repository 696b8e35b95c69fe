"""The page for every reader: contrast from the very CSS, words for pictures, an outline, and keys for all that moves.

axe-core in headless Chromium (light, dark, 1200 and 390 pixels wide, everything unfolded) found nothing to object to on
the reports of all quickstarts on 2026-11-29; these tests keep what can be kept without a browser.
"""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from audit import heat_map, plots, tables, templates
from audit.report import page
from audit.results import AuditResult, Exhibit, Section
from tests.audit.fixtures import audit_result

FOLDER = Path(templates.__file__).parent
SOURCE = (FOLDER / "report.html.j2").read_text()
CSS = SOURCE[SOURCE.index("<style>") : SOURCE.index("</style>")]


# --- contrast ----------------------------------------------------------------------------------------------------


def colours() -> dict[str, dict[str, str]]:
    """The CSS variables by scheme; print and dark change those of light."""
    blocks = re.findall(r":root \{(.*?)\}", CSS, flags=re.DOTALL)
    light, dark, printed = (dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in blocks)
    return {"light": light, "dark": light | dark, "print": light | printed}


def rgb(colour: str) -> list[float]:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def mixed(colour: str, paper: str, share: float) -> list[float]:
    """`color-mix(in srgb, colour share, transparent)` on paper."""
    return [share * a + (1 - share) * b for a, b in zip(rgb(colour), rgb(paper), strict=True)]


def contrast(a: list[float], b: list[float]) -> float:
    """WCAG 2.2, relative luminance and contrast ratio."""
    linear = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4  # noqa: E731
    light = sorted(0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) for r, g, b in (a, b))
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_the_contrast_is_that_of_the_standard():
    assert contrast(rgb("#000"), rgb("#ffffff")) == pytest.approx(21)
    assert contrast(rgb("#777777"), rgb("#fff")) == pytest.approx(4.48, abs=0.01)


TEXT = [("ink", "paper"), ("soft", "paper"), ("ink", "wash"), ("soft", "wash"), ("link", "paper")]
TEXT += [(one, f"{one}-wash") for one in ("leak", "none", "warn")] + [("leak", "paper"), ("none", "paper")]
TEXT += [(one, f"{card}-wash") for card in ("leak", "none", "warn") for one in ("ink", "link")]


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize(("text", "paper"), TEXT)
def test_text_stands_out_from_what_is_behind_it(scheme, text, paper):
    used = colours()[scheme]
    assert contrast(rgb(used[text]), rgb(used[paper])) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_on_the_coloured_cells_and_tokens(scheme):
    used = colours()[scheme]
    agreement = int(re.search(r"\((\d+) \* share\)", SOURCE)[1]) / 100
    heat = heat_map.STRONGEST / 100
    assert f"var(--leak) {heat_map.STRONGEST}%" in (FOLDER / "token_heat_map.html.j2").read_text()
    for colour, share in (("none", agreement), ("leak", heat), ("none", heat)):
        assert contrast(rgb(used["ink"]), mixed(used[colour], used["paper"], share)) >= 4.5, (colour, share)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_curves_and_bars_stand_out_from_the_page(scheme):
    paper = rgb(colours()[scheme]["paper"])
    for colour in (*plots.COLOURS, plots.MUTED, plots.MEMBER, plots.NON_MEMBER):
        assert contrast(rgb(colour), paper) >= 3, colour


def test_figures_have_no_text_of_a_fixed_colour():
    """Else it is black on black on a dark page: what they write takes the colour of the page's text."""
    (target,) = audit_result(targets=1).targets
    for figure in (plots.roc_figure([target], log=True), plots.score_figure(target.attacks[0], target.member)):
        drawn = plots.svg(figure, "figure", "a figure")
        assert 'fill="currentColor"' in drawn[: drawn.index(">")]
        for style in re.findall(r"<text[^>]*style=\"([^\"]*)\"", drawn):
            assert "fill: currentColor" in style or "fill" not in style, style


# --- words, outline, keys ----------------------------------------------------------------------------------------


class Outline(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: dict[int, str] = {}
        self.open: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "line", "path", "use", "link", "input", "rect"):
            self.open.append(len(self.tags) - 1)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self.open and self.tags[self.open.pop()][0] != tag:
            pass

    def handle_data(self, data):
        for place in self.open:
            self.said[place] = self.said.get(place, "") + data


@pytest.fixture(scope="module", params=[1, 3])
def outline(request) -> Outline:
    result = audit_result(targets=request.param, warnings=("a warning",), attacks=("LOSS", "RMIA", "LiRA"))
    return Outline(render(result))


def render(result: AuditResult) -> str:
    shown = Exhibit("15", "3", 0.5, "found", picture="iVBORw0KGgo=")
    risk = replace(result.risk, most=(*result.risk.most, shown))
    section = Section("ramia", "Range membership (RaMIA)", "A verdict.", "<h3>Part</h3><p>Words.</p>")
    return page(replace(result, risk=risk, sections=(section,)), tables.averages(result))


def test_every_picture_is_told_in_words(outline):
    for place, (tag, attributes) in enumerate(outline.tags):
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg":
            named = attributes.get("role") == "img" and attributes.get("aria-label")
            assert named or attributes.get("aria-hidden") == "true"
        if tag in ("button", "a", "th", "h1", "h2", "h3", "summary", "title", "dt"):
            assert outline.said.get(place, "").strip(), (tag, attributes)
    assert {"img", "svg", "button", "th", "summary"} <= {tag for tag, _ in outline.tags}


def test_every_header_cell_says_of_what_it_is_the_header(outline):
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in outline.tags if tag == "th")


def test_the_outline_has_one_title_and_skips_no_level(outline):
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    landmarks = [tag for tag, _ in outline.tags if tag in ("header", "main", "footer")]
    assert landmarks == ["header", "main", "footer"]


def test_the_page_says_its_language_and_can_be_enlarged(outline):
    tags = dict(outline.tags)
    assert tags["html"]["lang"] == "en"
    viewports = [a["content"] for tag, a in outline.tags if tag == "meta" and a.get("name") == "viewport"]
    assert viewports == ["width=device-width, initial-scale=1"]  # no maximum-scale, no user-scalable=no


def test_keys_reach_everything_in_the_order_of_the_page(outline):
    assert all(attributes.get("tabindex") in (None, "0") for _, attributes in outline.tags)
    switches = [attributes for tag, attributes in outline.tags if tag == "button"]
    assert switches and all(attributes["type"] == "button" and "aria-pressed" in attributes for attributes in switches)
    script = (FOLDER / "report.js").read_text()
    for part in ('"keydown"', "ArrowLeft", "Home", "figure.tabIndex = 0", 'tabindex: "0"', "aria-live", "aria-label"):
        assert part in script


def test_what_has_the_focus_is_seen_to_have_it():
    focus = [rule for rule in re.findall(r"([^{}]*)\{([^}]*)\}", CSS) if ":focus-visible" in rule[0]]
    seen = " ".join(selector for selector, _ in focus)
    assert all(kind in seen for kind in ("figure[data-curves]", "button", "summary", "a:", "[tabindex]"))
    assert all("outline: 2px solid" in style for _, style in focus)
    assert "outline: none" not in CSS and "outline: 0" not in CSS


def test_nothing_moves_by_itself():
    """So there is nothing to stop for those who prefer reduced motion."""
    for file in FOLDER.iterdir():
        if file.suffix in (".j2", ".js"):
            assert not re.search(
                r"transition|animation|@keyframes|scroll-behavior|setInterval|requestAnim", file.read_text()
            )


def test_names_of_any_length_and_direction_do_not_disturb_the_page():
    long, reversed_ = "x" * 5000, "\u202eright to left"
    result = audit_result(targets=1)
    risk = replace(result.risk, most=(Exhibit(long, reversed_, 0.5, "found"),))
    text = page(replace(result, risk=risk, dataset=long), tables.averages(result))
    assert "x" * 121 not in text and "x" * 119 + "…" in text
    assert f"<bdi>{reversed_}</bdi>" in text
    assert "overflow-wrap: break-word" in CSS[CSS.index("body {") : CSS.index("}", CSS.index("body {"))]


def test_the_verdict_says_what_was_not_tested():
    result = audit_result(targets=1)
    said = tables.not_tested(result)
    assert any("ramia" in one for one in said) and any("dp_audit" in one for one in said)
    ran = replace(result, sections=(Section("ramia", "RaMIA", "A verdict.", ""),))
    assert not any("ramia" in one for one in tables.not_tested(ran))
    text = page(ran, tables.averages(result))
    card = text[text.index('id="verdict"') : text.index("</section>")]
    assert "Not tested:" in card and '<a href="#ramia">RaMIA</a>' in card


@pytest.mark.skipif(not shutil.which("node"), reason="runs the page's own function in node")
def test_what_the_script_reads_out_is_the_number_and_nothing_less():
    """100% was once read out as 1%: its zeros looked like those behind a point."""
    (line,) = [line for line in (FOLDER / "report.js").read_text().splitlines() if "const percent" in line]
    shares = [0, 1, 0.1, 0.2, 0.5, 0.123456, 0.01, 0.00012345, 0.000001, 0.9999]
    code = f"{line}\nconsole.log(JSON.stringify({shares}.map(percent)))"
    said = json.loads(subprocess.run(["node", "-e", code], capture_output=True, text=True, check=True).stdout)
    assert said == ["0%", "100%", "10%", "20%", "50%", "12.3%", "1%", "0.012%", "0.0001%", ">99.9%"]
