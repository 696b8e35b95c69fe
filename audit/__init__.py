"""The pipeline: plan -> models -> signals -> audits -> report. The only layer that sees everything."""

from audit import ramia  # noqa: F401  (registers the block of a config that switches it on)
