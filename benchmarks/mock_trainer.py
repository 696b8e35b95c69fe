"""A trainer that trains nothing, for the benchmark of the cluster: what is measured is all the rest of a unit."""

from core.registry import TRAINERS


@TRAINERS.register("mock", summary="hands the models back as they came")
def mock(models, data, members, streams, *, epochs: int = 1):
    return models
