"""What `main.py` does beside running an audit: compare runs, judge one, write its report again, start a config."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from audit import compare, finished, gate
from core import config
from core.errors import UserError
from core.gate import Gate
from core.mistakes import Mistakes, Source
from core.rundir import write_json, write_text


def compared(options: argparse.Namespace) -> tuple[str, int]:
    """`compare RUN_A RUN_B`: what to print, and the exit code. Writes compare.csv and .json into B's report."""
    from audit.report import to_csv

    a, b = finished.read(options.run_a), finished.read(options.run_b)
    found = compare.compare(a, b)
    write_text(b.report / "compare.csv", to_csv(compare.rows(found)))
    write_json(b.report / "compare.json", compare.as_json(found))
    return "\n".join([*compare.lines(found), f"Written: {b.report / 'compare.csv'} and .json"]), 0


def gated(options: argparse.Namespace) -> tuple[str, int]:
    """`gate RUN`: what to print, and the exit code. Limits of the command line add to those of the run's config."""
    run = finished.read(options.run)
    written = run.raw.get("gate")
    asked = dict(written) if isinstance(written, dict) else {}
    asked["max"] = {**(asked.get("max") or {}), **dict(_limits(options.max))}
    asked |= {key: value for key in ("attack", "strict") if (value := getattr(options, key)) is not None}
    if not asked["max"]:
        raise UserError("gate: no limit; give --max tpr@0.01=0.05 auc=0.6, or a block gate: in the run's config")
    return ruled(run, _checked(asked))


def ruled(run: finished.Finished, limits: Gate) -> tuple[str, int]:
    """What to print of a run under these limits, and the exit code. Writes gate.json into its report."""
    ruling = gate.judge(run, limits)
    write_json(run.report / "gate.json", gate.as_json(ruling))
    return "\n".join(gate.lines(ruling)), ruling.exit_code


def _limits(written: Sequence[str]) -> Iterator[tuple[str, float]]:
    for text in written:
        measure, _, value = text.partition("=")
        try:
            yield measure.strip(), float(value)
        except ValueError:
            raise UserError(f"gate --max {text}: should be measure=limit, e.g. tpr@0.01=0.05 or auc=0.6") from None


def _checked(asked: dict) -> Gate:
    try:
        return Gate(**asked)
    except ValidationError as error:
        mistakes = Mistakes()
        mistakes.validation(("gate",), error, list(Gate.model_fields))
        mistakes.raise_if_any(Source("gate", "", {(): "gate"}))
        raise


def rebuilt(options: argparse.Namespace) -> tuple[str, int]:
    """`report RUN`: the report written anew from config.yaml, models and signals; nothing is trained or asked."""
    from audit import pipeline
    from audit.report import print_summary

    finished.config_of(options.run)  # the clear messages, where it is no run
    made = config.load(options.run / "config.yaml")
    cpu = {"device": "cpu"}  # nothing is computed that would need the run's own
    here = replace(
        made,
        run=made.run.model_copy(update={"log_dir": options.run}),  # the folder may have moved
        audit=made.audit.model_copy(update=cpu),
        train=made.train and made.train.model_copy(update=cpu),
    )
    print_summary(pipeline.run(here, only_report=True), here.report_dir)
    return "", 0


COMMANDS = {"compare": compared, "gate": gated, "report": rebuilt}


def run(experiment: config.Config, models: str | None = None) -> tuple[str, int]:
    """`--cf FILE`: the run, its table, and what its gate says of it, if it has one. `models`: a slice of it."""
    from audit import pipeline
    from audit.report import print_summary

    if models is None:
        result = pipeline.run(experiment)
    else:
        from audit.slices import run_slice

        result, said = run_slice(experiment, models)
        if result is None:
            return said, 0
    print_summary(result, experiment.report_dir)
    return ruled(finished.read(experiment.run.log_dir), experiment.gate) if experiment.gate else ("", 0)


def started(name: Path) -> tuple[str, int]:
    """`--init NAME`: a commented config to start from. Raises UserError rather than overwrite a file."""
    from core.starter import starter

    path = name if name.suffix in (".yaml", ".yml") else Path(f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path} is there already: choose another name, or delete it")
    write_text(path, starter(path))
    return f"{path} is written. Try: python main.py --cf {path} --check", 0


def schema() -> tuple[str, int]:
    """`--schema`: the JSON Schema of a config, with everything that is registered (plugins, too)."""
    import json

    from core.schema import schema

    return json.dumps(schema(), indent=1, ensure_ascii=False), 0
