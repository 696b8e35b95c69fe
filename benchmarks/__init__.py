"""Side-by-side measurements. Each file is one command: `python -m benchmarks.<name> [--full]`. See README.md."""
