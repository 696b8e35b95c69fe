"""The statistics of an audit: pure functions of arrays, without torch, files or global state."""
