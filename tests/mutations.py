"""Plant the known faults of membership-inference tools one by one: each must make a test fail.

    python tests/mutations.py            all of them, in a copy of the tree (some minutes)
    python tests/mutations.py twin lira  those whose name contains one of the words

Exit code 1 if a fault survives, or if its place in the code is no longer found. The eight of the first prototype
are marked *; the others are faults of published tools, or of the parts that a number rests on most.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("core", "modules", "dataset", "models", "trainers", "audit", "tests", "configs", "benchmarks")
MIA, CORE, PIPELINE = "tests/modules/mia", "tests/core", "tests/audit/test_pipeline.py"
SPEEDY = "tests/trainers/test_speedyresnet.py tests/trainers/test_muon.py"
TRAINERS, MODELS, RAMIA = "tests/trainers", "tests/models", "tests/modules/ramia tests/audit/test_ramia.py"


@dataclass(frozen=True)
class Fault:
    name: str
    file: str
    old: str
    new: str
    tests: str  # where it must be noticed


FAULTS = [
    Fault("* LOSS sign", "modules/mia/loss.py", "return evidence.target", "return -evidence.target", MIA),
    Fault(
        "* swapped masks in LiRA",
        "modules/mia/lira.py",
        "out = moments(evidence.references, ~evidence.trained_on)",
        "out = moments(evidence.references, evidence.trained_on)",
        MIA,
    ),
    Fault(
        "* swapped masks in RMIA",
        "modules/mia/rmia.py",
        "masked_mean(evidence.references, ~evidence.trained_on, p",
        "masked_mean(evidence.references, evidence.trained_on, p",
        MIA,
    ),
    Fault(
        "* top-half sort instead of the OUT models",
        "modules/mia/moments.py",
        "return total / count",
        "return np.sort([transform(row) for row in values], axis=0)[len(values) // 2 :].mean(axis=0)",
        MIA,
    ),
    Fault(
        "a later run of the original tool taken for the first",
        "audit/original_run.py",
        'if draw == "later":',
        'if draw == "never":',
        "tests/audit/test_original_run.py",
    ),
    Fault(
        "the targets judge which records were drawn",
        "audit/original_run.py",
        "if model not in twins]",
        "]",
        "tests/audit/test_original_run.py",
    ),
    Fault(
        "each pair of the original shuffles from the start",
        "audit/original_run.py",
        "        state.shuffle(order)",
        "        order = np.arange(pool); state.shuffle(order)",
        "tests/audit/test_original_run.py",
    ),
    Fault(
        "given samples are read sample by sample",
        "audit/given_ranges.py",
        "array = array.reshape(models if len(array) == models else -1, points, -1, *array.shape[2:])",
        "array = array.reshape(len(array), -1, points, *array.shape[2:]).swapaxes(1, 2)",
        "tests/audit/test_given_ranges.py",
    ),
    Fault(
        "the record itself is counted twice among given samples",
        "audit/given_ranges.py",
        "return np.concatenate([center, samples], axis=2)[:, :, columns]",
        "return np.concatenate([center, center, samples], axis=2)[:, :, columns]",
        "tests/audit/test_given_ranges.py",
    ),
    Fault(
        "given ranges know nothing of their neighbours",
        "audit/given_ranges.py",
        "(self.held[:, session.points] & ~own).astype(int)",
        "(self.held[:, session.points] & own).astype(int)",
        "tests/audit/test_given_ranges.py",
    ),
    Fault(
        "exposure of scores against the rows of all targets",
        "audit/risk_of_scores.py",
        "exposure[own] = np.where(target.member, below, np.nan)",
        "exposure[own] = np.where(target.member, below / len(rows), np.nan)",
        "tests/audit/test_from_scores.py",
    ),
    Fault(
        "the page reads out 100% as 1%",
        "audit/templates/report.js",
        "Number((100 * x).toPrecision(x < 0.001 ? 2 : 3))",
        '(100 * x).toPrecision(x < 0.001 ? 2 : 3).replace(/\\.?0+$/, "")',
        "tests/audit/test_accessible.py",
    ),
    Fault(
        "black text on dark pages",
        "audit/plots.py",
        'fill="currentColor" role="img"',
        'role="img"',
        "tests/audit/test_accessible.py",
    ),
    Fault(
        "* the target's twin as reference",
        "audit/plan.py",
        "if pair != own_pair",
        "if True",
        "tests/audit/test_plan.py",
    ),
    Fault(
        "* a rehearsed reference's twin as reference",
        "core/types.py",
        "return kind[:, None] == kind[None, :]",
        "return np.eye(len(kind), dtype=bool)",
        CORE + "/test_types.py",
    ),
    Fault("* stale artefact", "core/rundir.py", 'if made["settings"] != asked:', "if False:", CORE + "/test_rundir.py"),
    Fault(
        "* one generator shared by all models",
        "audit/training.py",
        'session.stream("train", m)',
        'session.stream("train")',
        PIPELINE,
    ),
    Fault("* ignored key", "core/registry.py", 'extra="forbid"', 'extra="ignore"', CORE),
    Fault(
        "* transposed table",
        "audit/signals.py",
        "[:, session.points],",
        "[:, session.points].T,",
        PIPELINE,
    ),
    Fault(
        "LiRA offline two-sided (official code)",
        "modules/mia/lira.py",
        "return (value - mean) / np.sqrt(variance)",
        "return -np.square(value - mean) / variance - np.log(variance)",
        MIA,
    ),
    Fault(
        "LiRA variance of OUT taken from IN (official code)",
        "modules/mia/lira.py",
        "out.mean, _variance(out, pooled_out, own)",
        "out.mean, _variance(inside, pooled_in, own)",
        MIA,
    ),
    Fault(
        "LiRA variance between records (official code)",
        "modules/mia/moments.py",
        "np.square((row - mean) * selected)",
        "np.square((row - mean.mean()) * selected)",
        MIA,
    ),
    Fault(
        "MultiLiRA forgets the determinant",
        "modules/mia/joint.py",
        "squares + self.log_variance + self.log_determinant",
        "squares + self.log_variance",
        MIA + "/test_multi_lira.py",
    ),
    Fault(
        "MultiLiRA correlates records, not models",
        "modules/mia/joint.py",
        "yield (row - of.mean) * scale",
        "yield (row - of.mean.mean(axis=1, keepdims=True)) * scale",
        MIA + "/test_multi_lira.py",
    ),
    Fault(
        "MultiLiRA offline weighs signals as if independent",
        "modules/mia/joint.py",
        "weights = np.broadcast_to(self.precision.sum(axis=0)[:, None], self.z.shape)",
        "weights = np.ones_like(self.z)",
        MIA + "/test_multi_lira.py",
    ),
    Fault(
        "a record's own correlations believed whatever the number of models",
        "modules/mia/joint.py",
        "return float(min(noise / spread, 1.0)) if spread > 0 else 1.0",
        "return 0.0",
        MIA + "/test_multi_lira.py",
    ),
    Fault(
        "QMIA's deviations learnt from residuals of the fit itself",
        "trainers/quantile.py",
        "held[count, fold == k] = predicted",
        "held[count, fold == k] = value[fold == k] - 0.5 * (value[fold == k] - predicted)",
        TRAINERS + "/test_quantile.py",
    ),
    Fault(
        "QMIA's quantiles not moved to their rates",
        "trainers/quantile.py",
        "moved = np.quantile(value - held, level)",
        "moved = 0.0",
        TRAINERS + "/test_quantile.py",
    ),
    Fault(
        "QMIA's quantiles may cross",
        "modules/mia/qmia.py",
        "np.sort(quantiles, axis=0)",
        "quantiles",
        MIA + "/test_qmia.py",
    ),
    Fault(
        "QMIA's regression of the audited records themselves",
        "audit/quantile_signals.py",
        "return boosted_gaussian(x, categorical, value, ask, draw)",
        "return boosted_gaussian(ask[: len(value)], categorical, value[: len(ask)], ask, draw)",
        "tests/audit/test_quantile_signals.py",
    ),
    Fault(
        "Combined learns from the fold that it is judged by",
        "modules/mia/combined.py",
        "own = pair == one",
        "own = np.arange(len(pair)) % 2 == one % 2",
        MIA + "/test_combined.py",
    ),
    Fault(
        "Combined standardises the target by itself",
        "modules/mia/combined.py",
        "_standard(ATTACKS[name](evidence, *given, **own), centre, scale)",
        "_standard(s := ATTACKS[name](evidence, *given, **own), np.median(s), scale)",
        MIA + "/test_combined.py " + MIA + "/test_every_attack.py",
    ),
    Fault(
        "Combined is not calibrated",
        "modules/mia/combined.py",
        "found[candidates[best]] = b * weights[1:]",
        "found[candidates[best]] = 2 * weights[1:]",
        MIA + "/test_combined.py",
    ),
    Fault(
        "a trajectory recorded before the epoch",
        "audit/trace_signals.py",
        "return trace[kept]",
        "return trace[kept - 1]",
        "tests/audit/test_trace_signals.py",
    ),
    Fault(
        "a student of its own start for every model",
        "audit/trace_signals.py",
        'build(session, "student")',
        "build(session, model)",
        "tests/audit/test_trace_signals.py",
    ),
    Fault(
        "a student taught by the labels' divergence from itself",
        "trainers/distil.py",
        "F.kl_div(z, taught[index]",
        "F.kl_div(taught[index], z",
        "tests/audit/test_trace_signals.py",
    ),
    Fault(
        "LossTrajectory without the target's own signal",
        "modules/mia/trajectory.py",
        "joint.Part(evidence.signal(distilled_of(settings))), joint.Part(evidence)]",
        "joint.Part(evidence.signal(distilled_of(settings)))]",
        MIA + "/test_trajectory.py",
    ),
    Fault("batch norm in training mode when queried", "trainers/evaluate.py", ".eval()", ".train()", TRAINERS),
    Fault(
        "queries in each other's places",
        "trainers/evaluate.py",
        "z.unflatten(0, (queries, len(x)))",
        "z.unflatten(0, (len(x), queries)).transpose(0, 1)",
        "tests/trainers/test_evaluate.py",
    ),
    Fault(
        "a perceptron's batches share their memory",
        "trainers/evaluate.py",
        "x[None].clone()",
        "x[None]",
        "tests/trainers/test_evaluate.py",
    ),
    Fault(
        "one order of records for a whole stack",
        "trainers/stack.py",
        "orders = [rng.permutation(len(data)) for rng in streams]",
        "orders = [streams[0].permutation(len(data)) for _ in streams]",
        "tests/trainers/test_stack.py",
    ),
    Fault(
        "oneDNN's products forget the bias",
        "trainers/stack.py",
        "biases = [None] * len(a) if bias is None else bias[:, 0]",
        "biases = [None] * len(a)",
        "tests/trainers/test_stack.py",
    ),
    Fault(
        "a model that bfloat16 answers wrongly for is asked in it all the same",
        "trainers/evaluate.py",
        'return ("bfloat16" if apart <= TOLERANCE else "float32"), apart',
        'return "bfloat16", apart',
        "tests/trainers/test_evaluate.py",
    ),
    Fault(
        "signals in bfloat16 overwrite those in float32",
        "audit/signals.py",
        'return {} if wanted == "float32" or session.data.is_text else {"audit.precision": wanted}',
        "return {}",
        "tests/audit/test_training.py",
    ),
    Fault(
        "a replayed step sees the batch it was captured with",
        "trainers/graphs.py",
        "self.x.copy_(x)",
        "pass",
        "tests/trainers/test_graphs.py",
    ),
    Fault(
        "a replayed step keeps the learning rate of its capture",
        "trainers/graphs.py",
        "self.rate.fill_(rate)",
        "self.rate = torch.full_like(self.rate, rate)",
        "tests/trainers/test_graphs.py",
    ),
    Fault(
        "the unit of a killed worker is forgotten",
        "audit/workers.py",
        "waiting.appendleft(worker.unit)",
        "pass",
        "tests/audit/test_workers.py",
    ),
    Fault(
        "RMIA saturates: no tie-break",
        "modules/mia/rmia.py",
        "if options.tie_break else None",
        "if False else None",
        MIA,
    ),
    Fault("RMIA odd Taylor polynomial", "modules/mia/rmia.py", "if order < 2 or order % 2:", "if order < 0:", MIA),
    Fault(
        "RMIA population treated unlike x",
        "modules/mia/rmia.py",
        "z = means.z / _line(means.z_out, a)",
        "z = means.z / means.z_out",
        MIA,
    ),
    Fault("RMIA rounding at gamma", "modules/mia/dominance.py", "while (up :=", "while False and (up :=", MIA),
    Fault(
        "strict and non-strict comparison mixed", "modules/mia/dominance.py", 'side="right")  #', 'side="left")  #', MIA
    ),
    Fault("leave-pair-out forgets the pair", "modules/mia/all_targets.py", "mean - d / (n - 1)", "mean - d / n", MIA),
    Fault("tuning takes the worst", "modules/mia/tuning.py", "np.argmax(totals)", "np.argmin(totals)", MIA),
    Fault(
        "unaligned queries",
        "trainers/augment.py",
        "def views(",
        "def views(x, queries):\n    return [v[torch.randperm(len(v))] for v in _views(x, queries)]\n\n\ndef _views(",
        TRAINERS,
    ),
    Fault(
        "every TPR is resolvable",
        "core/metrics.py",
        "resolvable=nominal_fpr * n0 >= ENOUGH_FALSE_POSITIVES",
        "resolvable=True",
        CORE,
    ),
    Fault(
        "ROC interpolated between achieved points",
        "core/metrics.py",
        "return roc.tpr[_last(roc.fpr, fpr_grid)]",
        "return np.interp(fpr_grid, roc.fpr, roc.tpr)",
        CORE,
    ),
    Fault(
        "interval forgets the threshold's noise",
        "core/metrics.py",
        "few, many = (_binomial_quantile(q, n0, nominal) for q in (tail, 1 - tail))",
        "few, many = np.floor(n0 * nominal) + 1, np.floor(n0 * nominal)",
        CORE,
    ),
    Fault("DeLong without the non-members' part", "core/metrics.py", "/ (n0 - 1) / n0", "* 0", CORE),
    Fault(
        "signals kept for other weights",
        "audit/signals.py",
        'facts(session, wanted.model)["sha256"]',
        '"always"',
        PIPELINE,
    ),
    Fault(
        "draws depend on the order of calls",
        "core/rng.py",
        "name.encode()",
        "(name + str(np.random.random())).encode()",
        CORE + "/test_rng.py",
    ),
    Fault("learning rate times 0.1", "trainers/schedule.py", "return peak *", "return 0.1 * peak *", TRAINERS),
    Fault("non-members are trained on", "trainers/loop.py", "order = order[member[order]]", "order = order", TRAINERS),
    Fault(
        "RaMIA trims the wrong end",
        "modules/ramia/aggregation.py",
        "for q in (q_s, q_e))",
        "for q in (1 - q_e, 1 - q_s))",
        RAMIA,
    ),
    Fault(
        "RaMIA reports without trimming",
        "audit/ramia.py",
        "scores = aggregation(sample_scores)",
        "scores = sample_scores.mean(axis=1)",
        RAMIA,
    ),
    Fault(
        "RaMIA tunes on twins",
        "modules/ramia/evidence.py",
        "return self.pair[:, None] == self.pair[None, :]",
        "return np.eye(len(self.pair), dtype=bool)",
        RAMIA,
    ),
    Fault("a range takes its center's membership", "audit/ramia.py", "held = own | (others > 0)", "held = own", RAMIA),
    Fault(
        "the center slips into the samples",
        "audit/ramia.py",
        "first = 0 if setup.include_center else 1",
        "first = 0",
        RAMIA,
    ),
    Fault("weights drawn unseeded", "models/__init__.py", "manual_seed(", "initial_seed() + 0 * (", MODELS),
    Fault(
        "speedyresnet: whitened by the first images of the pool, members or not",
        "trainers/speedy_loop.py",
        "second_moment(data, np.flatnonzero(member))",
        "second_moment(data, np.arange(len(member) // 2))",
        SPEEDY,
    ),
    Fault(
        "speedyresnet: the last batch is dropped",
        "trainers/speedy_loop.py",
        "    for batch in batches:",
        "    for batch in batches[:-1]:",
        SPEEDY,
    ),
    Fault(
        "speedyresnet: mirrored at random, not by turns",
        "trainers/speedy_loop.py",
        "mirrored = ~mirrored",
        "mirrored = mirrors.random(len(data)) < 0.5",
        SPEEDY,
    ),
    Fault(
        "speedyresnet: draws shared by members only",
        "trainers/speedy_loop.py",
        "draws = (draw[order[member[order]]] for",
        "draws = (draw[: member.sum()] if draw.dtype == bool else draw[order[member[order]]] for",
        SPEEDY,
    ),
    Fault("Muon: weights that grow", "trainers/muon.py", "p.mul_(len(p) ** 0.5 / p.norm())", "p.mul_(1)", SPEEDY),
    Fault(
        "the best of all step-wise ranges instead of a walk",
        "modules/dp_audit/stepwise.py",
        "return (bound, j) if bound > floor else (floor, last)",
        "floor = max(floor, bound)",
        "tests/modules/dp_audit/test_stepwise.py",
    ),
    Fault(
        "ghost norms without the bias",
        "trainers/dp_ghost.py",
        "total = total + g.sum(1).square().sum(1)",
        "total = total + 0",
        "tests/trainers/test_dp_ghost.py",
    ),
    Fault(
        "padding counted as text in DP-SGD",
        "trainers/dp_loop.py",
        "losses(logits, ids[None], length[None])",
        "losses(logits, ids[None], length[None] * 0 + len(ids))",
        "tests/trainers/test_dp_text.py",
    ),
    Fault(
        "text: padding told by its id",
        "trainers/text.py",
        "return torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]",
        "return ids[:, 1:] != 0",
        TRAINERS + "/test_transformer.py",
    ),
    Fault(
        "text: padding in the loss",
        "trainers/text.py",
        "view(len(ids), -1) * predicted(ids, lengths)",
        "view(len(ids), -1)",
        TRAINERS + "/test_transformer.py",
    ),
    Fault(
        "text: an adapter put on the last model's adapter",
        "models/adapters.py",
        "get_peft_model(sharing(base), config)",
        "get_peft_model(base, config)",
        TRAINERS + "/test_transformer.py",
    ),
    Fault(
        "text: the loss without logits forgets which token came",
        "trainers/token_loss.py",
        "slope.scatter_add_(1, token,",
        "slope.clone().scatter_add_(1, token,",
        TRAINERS + "/test_token_loss.py",
    ),
    Fault(
        "text: logits that are more than a product are taken for one",
        "trainers/token_loss.py",
        "return head if torch.equal(*found) else None",
        "return head",
        TRAINERS + "/test_token_loss.py",
    ),
    Fault(
        "text: an adapter's gradient without its scaling",
        "trainers/stacked_lora.py",
        "parts.outer(flat, h, of_b, alpha=ctx.scaling)",
        "parts.outer(flat, h, of_b)",
        TRAINERS + "/test_transformer.py",
    ),
    Fault(
        "text: what fills a place draws dropout, too",
        "trainers/stacked_lora.py",
        "own[:records].bernoulli_",
        "own.bernoulli_",
        TRAINERS + "/test_architectures.py",
    ),
    Fault(
        "before and after exchanged in compare",
        "audit/compare.py",
        "paired_auc_difference(b, a, member",
        "paired_auc_difference(a, b, member",
        "tests/audit/test_commands.py",
    ),
    Fault(
        "a gate that fails on a limit within the interval",
        "audit/gate.py",
        "found.low > limit, found",
        "found.high > limit, found",
        "tests/audit/test_commands.py",
    ),
    Fault(
        "a report that trains what is missing",
        "audit/pipeline.py",
        "rundir.making(not only_report)",
        "rundir.making(True)",
        "tests/audit/test_commands.py",
    ),
    Fault(
        "a record that is labelled wrongly is far from the boundary",
        "trainers/boundary.py",
        "right = (ask(data.x) == data.y)",
        "right = (ask(data.x) >= 0)",
        "tests/trainers/test_boundary.py",
    ),
    Fault(
        "labels of probes are not counted",
        "trainers/boundary.py",
        "        self.left[who] -= count",
        "        self.left[who] -= 0",
        "tests/trainers/test_boundary.py",
    ),
    Fault(
        "a step along the boundary in the wrong direction",
        "trainers/boundary.py",
        "sign = 2.0 * crossed - 1.0",
        "sign = 1.0 - 2.0 * crossed",
        "tests/trainers/test_boundary.py",
    ),
    Fault(
        "images asked about beyond their pixels",
        "trainers/boundary.py",
        "return z if self.box is None else",
        "return z if self.box is None or self.box else",
        "tests/trainers/test_boundary.py",
    ),
    Fault(
        "references asked for distances that nobody reads",
        "audit/label_signals.py",
        "return model in session.plan.targets or not of_targets_only(session, signal)",
        "return True",
        "tests/audit/test_label_only.py",
    ),
    Fault(
        "the mean of few references taken for the truth",
        "modules/risk/calibrated.py",
        "np.sqrt(variance * (1 + 1 / np.maximum(n, 1)))",
        "np.sqrt(variance)",
        "tests/modules/risk/test_calibrated.py",
    ),
    Fault(
        "a Gaussian tail for an estimated deviation",
        "modules/risk/calibrated.py",
        "p = np.where(np.isinf(degrees), ndtr(-t),",
        "p = np.where(degrees > 0, ndtr(-t),",
        "tests/modules/risk/test_calibrated.py",
    ),
    Fault(
        "a record's own null from models that trained on it",
        "modules/risk/calibrated.py",
        "out = ~trained_on",
        "out = trained_on",
        "tests/modules/risk",
    ),
    Fault(
        "calibration tried against the reference's own twin",
        "modules/risk/calibrated.py",
        "others, member = pair != pair[r], trained_on[r]",
        "others, member = np.arange(len(pair)) != r, trained_on[r]",
        "tests/modules/risk/test_calibrated.py",
    ),
    Fault(
        "memberships drawn by record where owners were asked for",
        "audit/plan.py",
        "        if owner is None:",
        "        if owner is None or True:",
        "tests/audit/test_owners.py",
    ),
    Fault(
        "owners in part judged as members",
        "audit/owners.py",
        "judged = np.flatnonzero((share == 0) | (share == 1))",
        "judged = np.flatnonzero(share >= 0)",
        "tests/audit/test_owners.py",
    ),
    Fault(
        "an owner's records in the pool and in the population",
        "dataset/tables.py",
        "    elif owner:",
        "    elif owner and False:",
        "tests/audit/test_owners.py",
    ),
    Fault(
        "the aggregation tuned on the lowest AUC",
        "modules/owners/tuning.py",
        "np.nanargmax(aucs)",
        "np.nanargmin(aucs)",
        "tests/modules/owners",
    ),
    Fault(
        "the mean over owners of the sum",
        "modules/owners/aggregation.py",
        "return held.sums(scores) / held.size",
        "return held.sums(scores)",
        "tests/modules/owners",
    ),
    Fault(
        "a blind classifier that knows owners again",
        "audit/blind.py",
        "    if column is None or column not in session.data.pool.groups:",
        "    if column is None or column:",
        "tests/audit/test_owners.py",
    ),
    Fault(
        "a claim that two can make",
        "core/claims.py",
        "os.O_CREAT | os.O_EXCL | os.O_WRONLY",
        "os.O_CREAT | os.O_WRONLY",
        "tests/core/test_claims.py",
    ),
    Fault(
        "a silent owner lives for ever",
        "core/claims.py",
        "if now - path.stat().st_mtime > STALE:",
        "if False:",
        "tests/core/test_claims.py",
    ),
    Fault(
        "one taken for dead is not told",
        "core/claims.py",
        "self._person(owner).unlink(missing_ok=True)",
        "pass",
        "tests/core/test_claims.py",
    ),
    Fault(
        "a stamp received before its artefact",
        "core/rundir.py",
        "key=lambda file: file[0].endswith(STAMP)",
        "key=lambda file: not file[0].endswith(STAMP)",
        "tests/core/test_claims.py",
    ),
    Fault(
        "leftovers of a dead driver write on",
        "audit/ray_worker.py",
        "rundir.hold_of(order.hold)",
        "pass",
        "tests/audit/test_ray_parts.py",
    ),
    Fault(
        "a unit is tried where it failed",
        "audit/on_ray.py",
        "if node not in self.avoid[index] or not nodes - self.avoid[index]:",
        "if True:",
        "tests/audit/test_ray_parts.py",
    ),
    Fault(
        "a unit is tried without end",
        "audit/on_ray.py",
        "if self.tries[index] < TRIES:",
        "if True:",
        "tests/audit/test_ray_parts.py",
    ),
    Fault(
        "workers with parts of two GPUs",
        "audit/on_ray.py",
        "int(there) * int(1 / gpus + 1e-9)",
        "int(there / gpus + 1e-9)",
        "tests/audit/test_ray_parts.py",
    ),
    Fault(
        "hours of the mean share",
        "audit/planner.py",
        "math.ceil(to_train / k) * found.train",
        "to_train / k * found.train",
        "tests/audit/test_planner.py",
    ),
    Fault(
        "a probe that is trained again",
        "audit/planner.py",
        "Plan(session.plan.member, ((),), (first,))",
        "Plan(~session.plan.member, ((),), (first,))",
        "tests/audit/test_planner.py",
    ),
]


def plant(fault: Fault, tree: Path) -> str:
    """What becomes of the suite with this fault: "caught", or why not."""
    path = tree / fault.file
    text = path.read_text()
    if fault.old not in text:
        return "NOT FOUND: the code has changed, adapt this script"
    path.write_text(text.replace(fault.old, fault.new, 1))
    command = [
        sys.executable,
        "-m",
        "pytest",
        *fault.tests.split(),
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
    ]
    try:
        done = subprocess.run(
            command, cwd=tree, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    finally:
        path.write_text(text)
    failed = next((line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))), "")
    return f"caught   {failed.partition('::')[2][:70]}" if done.returncode in (1, 2) and failed else "SURVIVED"


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("main.py", "pyproject.toml"):
            shutil.copy(ROOT / name, tree)
        for fault in chosen:
            outcome = plant(fault, tree)
            survived += not outcome.startswith("caught")
            print(f"{fault.name:<52} {outcome}", flush=True)
    print(f"{len(chosen) - survived} of {len(chosen)} faults were caught")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
