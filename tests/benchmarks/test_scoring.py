"""The benchmark compares equals, and its last line can be read by a machine. Nothing here is timed."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scoring
from benchmarks.side_by_side import last_line, side_by_side
from core.types import Evidence
from modules.mia.dominance import dominated
from modules.mia.lira import lira
from modules.mia.rmia import rmia
from modules.mia.tuning import REHEARSALS


@pytest.mark.parametrize("gamma", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("tile", [(1, 7), (16, 300)])
def test_the_pairwise_peer_counts_what_the_kernel_counts(gamma, dtype, tile):
    x, z = scoring.ratios(500, 300, gamma, dtype)
    counts = scoring.pairwise(x, z, gamma, tile)
    assert (counts == (x[:, None] / z >= dtype(gamma)).sum(axis=1)).all()
    assert (counts == dominated(x, z, gamma)).all()


def test_the_tuning_peer_chooses_and_scores_as_we_do():
    evidence, member = scoring.world(400, 150, pairs=3)
    assert isinstance(evidence, Evidence) and member.shape == (400,)
    _, scores = scoring.pairwise_rmia(evidence, (16, 150), REHEARSALS)
    assert np.array_equal(rmia(evidence, tie_break=False), scores)


def test_the_lira_peer_is_lira():
    evidence, _ = scoring.world(300, 1, pairs=8)
    peer = np.ascontiguousarray(np.moveaxis(evidence.references, 1, 2)), evidence.trained_on, evidence.target.T
    scoring.close(lira(evidence, variance="per_record"), scoring.per_record_loop(*peer, centre=np.mean, ddof=1))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_all_targets_from_file_are_all_targets_from_memory(tmp_path):
    scoring.write_signals(tmp_path, 300, 8)
    assert scoring.streamed(tmp_path).keys() == {"seconds", "extra_mib"}  # raises where they differ


def test_unequal_results_are_refused():
    with pytest.raises(AssertionError, match="1 of 3 values differ"):
        scoring.same(np.array([1, 2, 3]), np.array([1, 2, 4]))


def test_the_last_line_is_json_with_the_promised_keys():
    row = side_by_side("sum", lambda: sum(range(10)), lambda: sum(range(1000)), rounds=2, floor=1.0)
    line = json.loads(last_line([row], "numpy"))
    assert {"device", "versions", "rows"} <= line.keys()
    assert line["rows"][0]["name"] == "sum" and line["rows"][0]["floor"] == 1.0
    assert line["rows"][0]["ratio"] > 0


def test_a_table_for_documents_is_made_of_the_last_line():
    from benchmarks.side_by_side import markdown

    rows = [
        side_by_side(name, lambda: sum(range(10)), lambda: sum(range(5000)), rounds=2, floor=floor)
        for name, floor in (("met", 1.0), ("not met", 1e9), ("not asked", None))
    ]
    first, _, _, _, met, missed, unasked = markdown(json.loads(last_line(rows, "numpy"))).splitlines()
    assert "numpy" in first and "| 1x |" in met and "1e+09x: missed |" in missed and unasked.endswith("|  |")
    assert met.startswith("| met | ") and f"**{rows[0].ratio:.2g}x**" in met
