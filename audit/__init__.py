"""The pipeline: plan -> models -> signals -> audits -> report. The only layer that sees everything."""
