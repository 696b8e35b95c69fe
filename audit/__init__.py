"""The pipeline: plan -> models -> signals -> audits -> report. The only layer that sees everything."""

from audit import dp_audit, duci, ramia  # noqa: F401  (each registers the block of a config that switches it on)
