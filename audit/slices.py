"""`--models 0:32`: a slice of the plan, by one of several processes that work in the same run.log_dir.

Each holds the directory together with the others and claims the models that it trains (core/claims.py), so slices
may overlap, on any machines that see the directory. The last one to find every model there writes the report.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from audit import engines
from audit.pipeline import prepared, run
from audit.results import AuditResult
from audit.session import Session, device_of, make_reproducible
from audit.signals import compute_missing, missing_signals
from audit.training import Share, missing_models, train_missing
from core import claims
from core.config import TRAINED, Config
from core.errors import InUse, UserError
from core.log import kept

log = logging.getLogger(__name__)


def chosen(written: str, models: Sequence[int]) -> list[int]:
    """The planned models with numbers in `start:stop`, either of which may be left out; `n` is model n alone."""
    start, colon, stop = written.partition(":")
    try:
        low = int(start or ("0" if colon else ""))
        high = int(stop) if stop else (max(models) + 1 if colon else low + 1)
    except ValueError:
        raise UserError(f"--models {written}: should be start:stop, such as 0:32, or a number") from None
    found = [model for model in models if low <= model < high]
    if not found:
        raise UserError(f"--models {written}: none of the models of this plan, {models[0]} to {models[-1]}")
    return found


def run_slice(config: Config, written: str) -> tuple[AuditResult | None, str]:
    """Train and ask the models of a slice; then all of the rest, if every model is there and nobody is at work.

    Raises UserError for models that cannot be trained, by their numbers. Returns the result or None, and what to say.
    """
    if config.origin.name != TRAINED:
        raise UserError(f"--models {written}: with audit.source: {config.origin.name} no plan of models is trained")
    if config.run.engine != "local":
        raise UserError("--models: Ray divides the plan by itself: leave --models out, or set run.engine=local")
    make_reproducible(config.run.threads)
    for block in ("train", "audit"):
        device_of(config, block)
    session = prepared(config)
    models = chosen(written, session.plan.models)
    missing_models(session)  # refuses a run directory of other settings before anything is written
    said = f"models {written}"
    nothing_to_do = not _missing(session, models)
    if not nothing_to_do:
        _share(session, models, said, written)
    left = missing_models(session)
    if left:
        return (
            None,
            f"{said}: done. {len(left)} of {len(session.plan.models)} models of the plan are still to be trained",
        )
    if nothing_to_do and (config.run.log_dir / "times.json").exists():
        return None, f"{said}: there already, and so is the report, in {config.report_dir}"
    try:
        return run(config), ""
    except InUse as error:
        return None, f"{said}: done. All models are there; the report is left to the last ({error})"


def _missing(session: Session, models: list[int]) -> bool:
    there = set(models) - set(missing_models(session))
    return len(there) < len(models) or bool(missing_signals(session, models))


def _share(session: Session, models: list[int], said: str, written: str) -> None:
    folder, config = session.config.run.log_dir, session.config
    file = folder / f"run_models_{written.replace(':', '_')}.log"  # of its own: lines of several would mix
    with claims.sharing(folder, said) as own, kept(file), engines.running(config):
        share = Share(models, own)
        train_missing(session, device_of(config, "train"), share)
        compute_missing(session, device_of(config, "audit"), share)
