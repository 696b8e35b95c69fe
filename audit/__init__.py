"""The pipeline: plan -> models -> signals -> audits -> report. The only layer that sees everything."""

# Each registers the block of a config that switches it on, or what an audit can start from.
from audit import dp_audit, duci, from_models, ramia  # noqa: F401
