"""The vocabulary of an audit: types, metrics, configuration, randomness, artefacts. No torch, no attacks, no datasets."""
