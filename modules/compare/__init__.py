"""What differs between two models that were audited on the same records."""
