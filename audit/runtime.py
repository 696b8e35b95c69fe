"""What a run notes about itself: its config, where it ran and how long each stage took; and reads again later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from audit.results import AttackResult, AuditResult, TargetResult
from audit.session import environment
from core import rundir
from core.config import Config
from core.errors import UserError


def begin(config: Config, device: Any, only_report: bool) -> dict[str, Any]:
    """The environment that the report names: this one, noted beside the config; or the one noted by the run."""
    folder = config.run.log_dir
    if only_report:
        return _noted(folder / "environment.json")
    where = environment(device)
    rundir.write_text(folder / "config.yaml", config.source.text)
    rundir.write_json(folder / "environment.json", where)
    return where


def end(result: AuditResult, config: Config, only_report: bool) -> AuditResult:
    """The result with its times: as measured, noted in times.json; or as the run noted them."""
    file = config.run.log_dir / "times.json"
    if only_report:
        return _with_times(result, _noted(file))
    attacks = {str(t.target): {a.attack: a.seconds for a in t.attacks} for t in result.targets}
    rundir.write_json(file, {"stages": result.timings, "attacks": attacks})
    return result


def _noted(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file} is missing: the run is not finished; its own command continues it")
    return rundir.read_json(file)


def _with_times(result: AuditResult, noted: dict[str, Any]) -> AuditResult:
    def timed(target: int, attack: AttackResult) -> AttackResult:
        return replace(attack, seconds=noted["attacks"].get(str(target), {}).get(attack.attack, attack.seconds))

    def all_timed(target: TargetResult) -> TargetResult:
        return replace(target, attacks=tuple(timed(target.target, attack) for attack in target.attacks))

    stages = tuple((str(stage), float(seconds)) for stage, seconds in noted["stages"])
    return replace(result, timings=stages, targets=tuple(map(all_timed, result.targets)))
