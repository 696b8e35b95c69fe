"""How fast are the scores, against the obvious way of computing them? `python -m benchmarks.scoring [--full]`

Every row first shows that both sides give the same, then times them. The peers are written from the published
algorithms, and as fast as that form goes: the pairwise RMIA runs in the best of several blockings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import auc, roc_curve

from benchmarks.side_by_side import (
    ExtraMemory,
    Row,
    Spread,
    fresh,
    header,
    last_line,
    one_thread,
    peak_rss,
    seconds,
    show,
    side_by_side,
)
from core.rng import stream
from core.types import Evidence
from modules.mia.all_targets import lira_all_targets
from modules.mia.dominance import dominated
from modules.mia.lira import lira
from modules.mia.rmia import GRID, rmia
from modules.mia.tuning import REHEARSALS

PACKAGES = ("numpy", "scipy", "scikit-learn", "matplotlib")
TILES = [(rows, width) for rows in (1, 4, 16, 64) for width in (2_000, 10_000, 50_000)]
MEMORY_LIMIT = 64.0  # MiB, asked of all targets at once from a file
RECORDED_SECONDS, RECORDED_MIB = 30.0, 4689e6 / 2**20  # the original's whole audit of one target, see `whole_audit`


def world(points: int, population: int, pairs: int) -> tuple[Evidence, np.ndarray]:
    """Evidence of a target, and its membership: log-odds of N(difficulty, 1), one more where trained on."""
    draw = stream(0, "benchmark", points, population, pairs)
    halves = draw.random((pairs + 1, points)) < 0.5
    trained_on = np.stack([halves[1:], ~halves[1:]], axis=1).reshape(2 * pairs, points)

    def log_odds(difficulty: np.ndarray, trained: np.ndarray) -> np.ndarray:
        noise = draw.standard_normal((len(trained), 1, trained.shape[1]), dtype=np.float32)
        return noise + difficulty.astype(np.float32) + trained[:, None, :]

    x = log_odds(1.5 * draw.standard_normal(points), np.concatenate([halves[:1], trained_on]))
    z = log_odds(1.5 * draw.standard_normal(population), np.zeros((2 * pairs + 1, population), dtype=bool))
    return Evidence(x[0], x[1:], trained_on, z[0], z[1:]), halves[0]


# --- RMIA ------------------------------------------------------------------------------------------------------


def ratios(points: int, population: int, gamma: float, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of x and of z with ties among z, and with a tenth of the x at, or a rounding away from, gamma z."""
    draw = stream(0, "ratios", points, population)
    z = draw.lognormal(size=population).astype(dtype)
    z[: population // 10] = z[-(population // 10) :]
    x = draw.lognormal(size=points).astype(dtype)
    x[::10] = z[draw.integers(population, size=len(x[::10]))] * dtype(gamma)
    return x, z


def pairwise(x: np.ndarray, z: np.ndarray, gamma: float, tile: tuple[int, int]) -> np.ndarray:
    """The peer: for each x, the number of z with x / z >= gamma, from all N x P quotients, a tile at a time."""
    rows, width = tile
    quotient, hit = np.empty(tile, x.dtype), np.empty(tile, bool)
    count = np.zeros(len(x), dtype=np.int64)
    for left in range(0, len(z), width):
        of_z = z[left : left + width]
        for top in range(0, len(x), rows):
            of_x = x[top : top + rows, None]
            shape = np.s_[: len(of_x), : len(of_z)]
            np.divide(of_x, of_z, out=quotient[shape])
            np.greater_equal(quotient[shape], x.dtype.type(gamma), out=hit[shape])
            count[top : top + rows] += [np.count_nonzero(row) for row in hit[shape]]
    return count


def best_tile(x: np.ndarray, z: np.ndarray, gamma: float) -> tuple[int, int]:
    """The blocking in which `pairwise` is fastest on this machine, and, for memory's sake, no wider than z."""
    few = x[:256]
    tiles = {(rows, min(width, len(z))) for rows, width in TILES}
    return min(sorted(tiles), key=lambda tile: min(seconds(lambda: pairwise(few, z, gamma, tile)) for _ in range(2)))


def rmia_kernel(
    points: int, population: int, gamma: float, dtype: type, *, rounds: int, floor: float | None, peer_rows: int = 0
) -> Row:
    """Counting what x dominates, sorted against pairwise. peer_rows: the peer is given that many x, 0 for all."""
    x, z = ratios(points, population, gamma, dtype)
    tile = best_tile(x, z, gamma)
    few = x[:: len(x) // peer_rows][:peer_rows] if peer_rows else x
    ours = dominated(x, z, gamma)
    same(ours[:: len(x) // peer_rows][:peer_rows] if peer_rows else ours, pairwise(few, z, gamma, tile))
    tracemalloc.start()
    dominated(x, z, gamma)
    extra = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    sample = f"; the peer's time is that of {peer_rows:,} of the x, scaled" if peer_rows else ""
    return side_by_side(
        f"RMIA kernel, {points:,} x {population:,}, gamma {gamma:g}, {np.dtype(dtype)}"
        f"{', estimated' * bool(peer_rows)}",
        lambda: dominated(x, z, gamma),
        lambda: pairwise(few, z, gamma, tile),
        rounds=rounds,
        floor=floor,
        part=len(few) / len(x),
        notes=f"equal counts of all x that the peer did; its best tile is {tile[0]} x {tile[1]:,}{sample}; "
        f"ours takes {extra:.1f} MiB beyond its input",
        extra_mib=extra,
    )


def pairwise_rmia(
    evidence: Evidence, tile: tuple[int, int], rehearsals: int, grid: tuple[float, ...] = GRID
) -> tuple[float, np.ndarray]:
    """The peer: `a` with the best AUC over rehearsals, then the scores, by N x P quotients and a ROC for each `a`."""

    def means(seen: Evidence) -> Iterator[np.ndarray]:
        yield expit(seen.target[0].astype(float))
        yield expit(seen.references[:, 0].astype(float)).mean(axis=0, where=~seen.trained_on)
        yield expit(seen.population[0].astype(float))
        yield expit(seen.population_references[:, 0].astype(float)).mean(axis=0)

    def score(x: np.ndarray, x_out: np.ndarray, z: np.ndarray, z_out: np.ndarray, a: float) -> np.ndarray:
        x, z = (p / (((1 + a) * out + (1 - a)) / 2) for p, out in ((x, x_out), (z, z_out)))
        return pairwise(x, z, 1.0, tile) / len(z)

    total = np.zeros(len(grid))
    for rehearsal, member in evidence.rehearsals(rehearsals):
        of_model = tuple(means(rehearsal))
        for k, a in enumerate(grid):
            fpr, tpr, _ = roc_curve(member, score(*of_model, a))
            total[k] += auc(fpr, tpr)
    a = grid[int(np.argmax(total))]
    return a, score(*means(evidence), a)


def rmia_tuned(points: int, population: int, *, rounds: int, floor: float | None) -> list[Row]:
    """Tuning `a` and scoring one target, against the same procedure pairwise, and a quarter of it."""
    evidence, _ = world(points, population, pairs=2)
    tile = best_tile(*(expit(seen[0].astype(float)) for seen in (evidence.target, evidence.population)), 1.0)
    a, scores = pairwise_rmia(evidence, tile, REHEARSALS)
    same(rmia(evidence, tie_break=False), scores)
    tuned = rmia(evidence)  # (beaten + something within 0 and 1) / (population + 1)
    same(np.floor(tuned * (population + 1)).astype(int), np.rint(scores * population).astype(int))
    name = f"RMIA, a tuned and one target scored, {points:,} x {population:,}"
    row = side_by_side(
        f"{name}, same procedure",
        lambda: rmia(evidence),
        lambda: pairwise_rmia(evidence, tile, REHEARSALS),
        rounds=rounds,
        floor=floor,
        notes=f"equal a ({a:g}) and counts; both sides: {REHEARSALS} rehearsals x {len(GRID)} values, then the target; "
        f"the peer's best tile is {tile[0]} x {tile[1]:,}",
    )
    less = side_by_side(
        f"{name}, peer with one stand-in",
        lambda: rmia(evidence),
        lambda: pairwise_rmia(evidence, tile, 1),
        rounds=rounds,
        notes=f"ours as shipped ({REHEARSALS} rehearsals), the peer does a quarter of that work, as the original",
    )
    return [row, less]


# --- LiRA ------------------------------------------------------------------------------------------------------


def per_record_loop(
    scores: np.ndarray, keep: np.ndarray, target: np.ndarray, *, centre=np.median, ddof: int = 0
) -> np.ndarray:
    """The peer: online LiRA of one target by the algorithm of the official script.

    scores (M, N, Q) and keep (M, N) of the shadow models, target (N, Q). Each record's IN and OUT scores are picked
    in a loop over records and cut to the least count of any record; centres, deviations and densities are vectorised.
    """
    inside, outside = [], []
    for record in range(scores.shape[1]):
        inside.append(scores[keep[:, record], record, :])
        outside.append(scores[~keep[:, record], record, :])
    log_density = []
    for side in (inside, outside):
        least = min(map(len, side))
        kept = np.array([values[:least] for values in side])
        log_density.append(norm.logpdf(target, centre(kept, 1), kept.std(1, ddof=ddof) + 1e-30))
    return (log_density[0] - log_density[1]).mean(1)


def lira_one(points: int, models: int, *, rounds: int, floor: float | None) -> Row:
    """One target against `models` references, each record with a variance of its own."""
    evidence, _ = world(points, 1, models // 2)
    peer = np.ascontiguousarray(np.moveaxis(evidence.references, 1, 2)), evidence.trained_on, evidence.target.T
    close(lira(evidence, variance="per_record"), per_record_loop(*peer, centre=np.mean, ddof=1))
    return side_by_side(
        f"LiRA online, one target, {points:,} records, {models} references",
        lambda: lira(evidence, variance="per_record"),
        lambda: per_record_loop(*peer),
        rounds=rounds,
        floor=floor,
        notes="equal to 1e-4 where the loop takes means and n - 1, as we do; timed as published, with medians and n",
    )


def lira_all(points: int, models: int, *, rounds: int, floor: float | None) -> Row:
    """Every one of `models` as the target, against the loop over records for each."""
    evidence, _ = world(points, 1, models // 2)
    signals, member = evidence.references[:, 0], evidence.trained_on
    scores = np.ascontiguousarray(signals[..., None])
    ours = lira_all_targets(signals, member, variance="per_record")

    def loop(target: int, **centre) -> np.ndarray:
        others = np.arange(models) // 2 != target // 2
        return per_record_loop(scores[others], member[others], scores[target], **centre)

    for target in (0, models - 1):
        close(ours[target], loop(target, centre=np.mean, ddof=1))
    return side_by_side(
        f"LiRA online, all {models} targets, {points:,} records, estimated",
        lambda: lira_all_targets(signals, member, variance="per_record"),
        lambda: loop(models // 2),
        rounds=rounds,
        floor=floor,
        part=1 / models,
        notes=f"first and last target equal to 1e-4, as above; the peer's time is that of one target, times {models}",
    )


def lira_streamed(points: int, models: int, *, rounds: int) -> list[Row]:
    """Every model as the target, read from and written to files, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        write_signals(Path(folder), points, models)
        found = [fresh("benchmarks.scoring", "--child", "streamed", folder) for _ in range(rounds)]
    name = f"LiRA online, all {models} targets, {points:,} records, from file"
    extra, spent = (Spread.of([run[key] for run in found]) for key in ("extra_mib", "seconds"))
    limit, ratios = Spread.of([MEMORY_LIMIT]), Spread.of([MEMORY_LIMIT / run["extra_mib"] for run in found])
    notes = "peer: the 64 MiB allowed; ours: anonymous memory of the process, sampled every 5 ms, less that before"
    return [
        Row(f"{name}, extra memory", ratios.median, 1.0, "MiB", extra, limit, ratios, rounds, "", notes),
        Row(f"{name}, time", None, None, "s", spent, None, None, rounds, "cpu"),
    ]


def write_signals(folder: Path, points: int, models: int) -> None:
    """Signals (float32) and memberships of pairs of models, a model at a time."""
    signals, member = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (models, points))
        for name, dtype in (("signals", np.float32), ("member", bool))
    )
    for model in range(models):
        draw = stream(0, "streamed", model)
        member[model] = ~member[model - 1] if model % 2 else draw.random(points) < 0.5
        signals[model] = draw.standard_normal(points, dtype=np.float32) + member[model]


def streamed(folder: Path) -> dict[str, float]:
    """In a process of its own, whose memory holds nothing yet: CPU seconds and extra memory, from file to file."""
    signals, member = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("signals", "member"))
    out = np.lib.format.open_memmap(folder / "scores.npy", "w+", np.float32, signals.shape)
    attack = partial(lira_all_targets, variance="per_record")
    attack(signals[:, :8], member[:, :8])  # what is loaded once is not extra; the buffers of its blocks are
    start = time.process_time()
    with ExtraMemory() as memory:
        attack(signals, member, out=out)
    spent = time.process_time() - start
    close(out[:, -100:], attack(signals[:, -100:], member[:, -100:]))
    return {"seconds": spent, "extra_mib": memory.peak}


# --- the whole audit -------------------------------------------------------------------------------------------


def whole_audit(points: int, population: int, *, rounds: int) -> list[Row]:
    """From the signals of one target and two pairs of references to the files of the report, in fresh processes."""
    found = [fresh("benchmarks.scoring", "--child", "audit", str(points), str(population)) for _ in range(rounds)]
    name = f"whole audit of one target, {points:,} x {population:,}"
    where = "peer: the original tool, recorded on another machine (2 cores AMD EPYC), not run here"

    def row(label: str, key: str, peer: float, unit: str, clock: str, **facts: object) -> Row:
        ours, against = (
            Spread.of(values) for values in zip(*((run[key], peer / run[key]) for run in found), strict=True)
        )
        label = f"{name}, {label}, recorded peer"
        return Row(label, against.median, None, unit, ours, Spread.of([peer]), against, rounds, clock, where, facts)

    return [
        row("time", "seconds", RECORDED_SECONDS, "s", "wall", steps=found[-1]["steps"]),
        row("peak memory", "peak_mib", RECORDED_MIB, "MiB", ""),
    ]


def audited(points: int, population: int) -> dict[str, object]:
    """In a process of its own: seconds and memory from signals to report."""
    evidence, member = world(points, population, pairs=2)
    steps = {}
    start = mark = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal mark
        steps[step], mark = time.perf_counter() - mark, time.perf_counter()

    from audit.report import write_report
    from audit.results import AttackResult, AuditResult, TargetResult
    from core.metrics import roc, summarise

    lap("import")
    scores = rmia(evidence)
    lap("tune and attack")
    result = AttackResult(
        "RMIA", {}, scores, roc(scores, member), summarise(scores, member), (), steps["tune and attack"]
    )
    lap("metrics")
    everything = AuditResult(
        targets=(TargetResult(0, member, (result,)),),
        points=np.arange(points),
        labels=np.zeros(points, dtype=np.int64),
        models=(),
        dataset="synthetic",
        population=population,
        queries=1,
        config="",
        environment={},
        timings=(),
        warnings=(),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_report(everything, Path(folder))
        lap("report")
        files = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*"))
    return {"seconds": time.perf_counter() - start, "peak_mib": peak_rss(), "steps": steps, "files": files}


def same(ours: np.ndarray, peer: np.ndarray) -> None:
    """Refuse to time what is not equal, in every element."""
    if not np.array_equal(ours, peer):
        raise AssertionError(f"{np.count_nonzero(ours != peer)} of {ours.size} values differ from the peer's")


def close(ours: np.ndarray, peer: np.ndarray) -> None:
    """Refuse to time what is not equal to 1e-4: the floor of a variance aside, both are the same formula."""
    np.testing.assert_allclose(ours, peer, rtol=1e-4, atol=1e-4)


def measure(full: bool) -> Iterator[Row]:
    """Every row, as it is done."""
    rounds = 7 if full else 3
    for dtype in (np.float64, np.float32):
        for gamma in (1.0, 1.7):
            yield rmia_kernel(50_000, 10_000, gamma, dtype, rounds=rounds, floor=60.0)
    if full:
        for gamma in (1.0, 1.7):
            yield rmia_kernel(1_000_000, 100_000, gamma, np.float64, rounds=rounds, floor=400.0, peer_rows=2_000)
        yield from rmia_tuned(50_000, 10_000, rounds=3, floor=200.0)
    else:
        yield from rmia_tuned(10_000, 4_000, rounds=rounds, floor=None)
    yield lira_one(50_000, 64, rounds=rounds, floor=4.0)
    if full:
        yield lira_all(50_000, 256, rounds=5, floor=150.0)
        yield from lira_streamed(1_000_000, 256, rounds=2)
    else:
        yield lira_all(10_000, 64, rounds=rounds, floor=None)
    yield from whole_audit(50_000, 10_000, rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes that the floors are for; some minutes")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, *given = arguments.child
        print(json.dumps(streamed(Path(*given)) if what == "streamed" else audited(*map(int, given))))
        return
    one_thread()
    header(*PACKAGES)
    rows = []
    for row in measure(arguments.full):
        show(row)
        rows.append(row)
    print(last_line(rows, *PACKAGES))


if __name__ == "__main__":
    main()
