"""The pipeline: plan -> models -> signals -> audits -> report. The only layer that sees everything."""

from audit import (  # noqa: F401  (each registers the block of a config that switches it on)
    dp_audit,
    duci,
    from_models,
    from_scores,
    from_signals,
    owners,
    ramia,
)
