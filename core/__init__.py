"""The vocabulary of an audit: types, metrics, configuration, randomness, artefacts. It knows nothing of torch."""
