"""The command line: what can be asked of this tool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

KINDS = ("datasets", "models", "trainers", "attacks", "modules", "sources", "config", "cards")
HELLO = """\
Privacy Meter: what does a trained model reveal about its training data?

  python main.py --cf configs/quickstart.yaml          audit real data on this CPU, in about a minute
  python main.py --cf my.yaml --check                  what a run would do: models to train, disk, memory
  python main.py --init my                             write my.yaml, a commented config to start from
  python main.py --list attacks                        what a config can name (datasets, models, trainers, ...)
  python main.py --list attacks RMIA                   one of them: needs, cost, when it fails, source, settings

  python main.py compare runs/before runs/after        does the one leak less than the other?
  python main.py gate runs/x --max tpr@0.01=0.05       exit code 3 if more was found: for CI
  python main.py report runs/x                         write the report again, without training anything

A run ends in <run.log_dir>/report/index.html. All options: python main.py --help; how to read it: README.md"""
EPILOG = """\
exit codes: 0 done (gate: pass) · 2 a mistake that you can mend, or nothing was asked for · 3 gate: fail ·
4 gate: not resolvable with these records · 130 interrupted: the same command continues"""


def parser() -> argparse.ArgumentParser:
    """Options of a run, and the commands that work on finished runs."""
    main = argparse.ArgumentParser(
        description="Privacy Meter: what does a trained model reveal about its training data?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--cf", type=Path, metavar="FILE", help="the experiment: a YAML file, see configs/")
    main.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="e.g. train.epochs=1")
    main.add_argument(
        "--models",
        metavar="START:STOP",
        help="train and query these models of the plan only, beside other such processes; the last one audits",
    )
    main.add_argument("--check", action="store_true", help="check the config, print the plan, and stop")
    main.add_argument(
        "--probe", action="store_true", help="--check, after training and querying one model: how long will it take?"
    )
    main.add_argument(
        "--like", type=Path, metavar="RUN", help="--check, with the seconds of a model from this run.log_dir"
    )
    main.add_argument(
        "--list",
        nargs="+",
        action=_Listed,
        metavar=("KIND", "NAME"),
        help=f"what a config can name: {', '.join(KINDS)}",
    )
    main.add_argument("--init", type=Path, metavar="NAME", help="write NAME.yaml, a commented config to start from")
    main.add_argument("--schema", action="store_true", help="print the JSON Schema of a config, for editors")
    _plugin(main, default=[])
    commands = main.add_subparsers(dest="command", metavar="compare | gate | report")
    compare = commands.add_parser("compare", help="does run B leak less than run A? paired, on the same records")
    compare.add_argument("run_a", type=Path, metavar="RUN_A", help="run.log_dir of a finished run: before")
    compare.add_argument("run_b", type=Path, metavar="RUN_B", help="the same: after; compare.csv goes into its report")
    gate = commands.add_parser("gate", help="exit code 3 if a finished run found more than it may")
    gate.add_argument("run", type=Path, metavar="RUN", help="run.log_dir of a finished run")
    gate.add_argument("--max", nargs="+", default=[], metavar="MEASURE=LIMIT", help="e.g. tpr@0.01=0.05 auc=0.6")
    gate.add_argument("--attack", metavar="NAME", help="judge this attack alone; any (the default): each of them")
    gate.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="fail unless the whole interval is within the limit; without it, fail only if all of it is above",
    )
    report = commands.add_parser("report", help="write the report of a finished run again, from its files")
    report.add_argument("run", type=Path, metavar="RUN", help="run.log_dir of a finished run")
    _plugin(report, default=argparse.SUPPRESS)
    return main


class _Listed(argparse.Action):
    """A kind, and the names of those that are to be shown; all of them where none is named."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None
    ) -> None:
        if values[0] not in KINDS:
            parser.error(f"argument --list: {values[0]!r} is no kind; there are: {', '.join(KINDS)}")
        if values[1:] and values[0] in ("config", "cards"):
            parser.error(f"argument --list {values[0]}: takes no names")
        namespace.list = values


def _plugin(parser: argparse.ArgumentParser, default: Any) -> None:
    parser.add_argument(
        "--plugin", nargs="+", action="extend", default=default, type=Path, metavar="FILE", help="your own .py"
    )
