"""A YAML block is a function call: names find functions, and signatures are schemas."""

from __future__ import annotations

import subprocess
import sys
from functools import wraps
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import ValidationError

from core.registry import ATTACKS, DATASETS, MODELS, TRAINERS, Registry


@pytest.fixture
def attacks() -> Registry:
    registry = Registry("attack")

    @registry.register("RMIA", needs_references=True)
    def rmia(
        evidence: NoSuchTypeAnywhere,  # as a positional argument may name torch without importing it
        *,
        gamma: Annotated[float, Gt(0)] = 1.0,
        offline_a: Annotated[float, Ge(0), Le(1)] | None = None,
        mode: Literal["online", "offline"],
    ) -> AlsoUnknown:
        return evidence, gamma, offline_a, mode

    @registry.register("LOSS")
    def loss(evidence):
        return evidence

    return registry


@pytest.mark.parametrize("name", ["RMIA", "rmia", "Rmia", "rMiA"])
def test_names_match_whatever_their_case(attacks, name):
    assert attacks[name].__name__ == "rmia"
    assert attacks.find(name) == "RMIA"
    assert attacks.fact(name, "needs_references") is True
    assert attacks.bind(name, {"mode": "online"})["gamma"] == 1.0


def test_a_name_that_was_never_registered_is_not_found_and_not_added(attacks):
    assert attacks.find("LiRA") is None
    with pytest.raises(KeyError):
        attacks["LiRA"]
    assert list(attacks) == ["RMIA", "LOSS"]


@pytest.mark.parametrize("name", ["RMIA", "rmia"])
def test_a_second_function_of_the_same_name_is_refused_and_the_first_stays(attacks, name):
    first = attacks["RMIA"]
    with pytest.raises(ValueError, match=rf"attack '{name}' is in {__name__} and {__name__}"):
        attacks.register(name)(lambda evidence: evidence)
    assert attacks["RMIA"] is first
    assert len(attacks) == 2


def test_a_near_miss_is_told_what_may_have_been_meant(attacks):
    with pytest.raises(KeyError, match=r"no attack is called 'RIMA'; did you mean 'RMIA'\?"):
        attacks["RIMA"]
    assert "did you mean 'LOSS'" in attacks.unknown("los")


def test_a_far_miss_is_told_all_there_is(attacks):
    assert attacks.unknown("zzz") == "no attack is called 'zzz'; there are: LOSS, RMIA"


def test_a_prefix_entry_matches_every_name_with_that_prefix():
    models = Registry("model")

    @models.register("torchvision/special")
    def special():
        return "special"

    @models.register("torchvision/*", image=True)
    def torchvision():
        return "any"

    assert models["torchvision/resnet50"] is torchvision
    assert models["TorchVision/ResNet50"] is torchvision
    assert models.fact("torchvision/resnet50", "image") is True
    assert models["Torchvision/Special"] is special  # an exact name goes before a prefix
    assert models.find("torchvision") is None
    assert models.find("timm/resnet50") is None


def test_a_fact_that_was_not_given_is_its_default(attacks):
    assert attacks.fact("LOSS", "needs_references") is None
    assert attacks.fact("loss", "needs_references", False) is False


def test_only_keyword_only_arguments_are_settings(attacks):
    assert list(attacks.schema("RMIA").model_fields) == ["gamma", "offline_a", "mode"]
    assert list(attacks.schema("LOSS").model_fields) == []
    with pytest.raises(ValidationError, match="evidence"):
        attacks.bind("RMIA", {"mode": "online", "evidence": 1})


def test_bind_completes_with_defaults_and_converts_what_yaml_reads_as_text(attacks):
    assert attacks.bind("RMIA", {"mode": "offline", "gamma": "1e-5"}) == {
        "gamma": 1e-5,
        "offline_a": None,
        "mode": "offline",
    }
    assert attacks.bind("LOSS", {}) == {}


@pytest.mark.parametrize(
    "settings, at",
    [
        ({"gamma": 0, "mode": "online"}, "gamma"),  # Gt(0)
        ({"offline_a": 1.1, "mode": "online"}, "offline_a"),  # Le(1)
        ({"offline_a": -0.1, "mode": "online"}, "offline_a"),  # Ge(0)
        ({"mode": "both"}, "mode"),  # not a choice
        ({}, "mode"),  # no default, so it must be given
        ({"mode": "online", "gama": 1.0}, "gama"),  # unknown key
        ({"mode": "online", "gamma": "one"}, "gamma"),  # type
    ],
)
def test_a_bad_setting_is_refused_by_name(attacks, settings, at):
    with pytest.raises(ValidationError) as error:
        attacks.bind("RMIA", settings)
    assert [mistake["loc"][0] for mistake in error.value.errors()] == [at]


def test_all_mistakes_are_reported_at_once(attacks):
    with pytest.raises(ValidationError) as error:
        attacks.bind("RMIA", {"gamma": -1, "mode": "both", "gama": 1})
    assert {mistake["loc"][0] for mistake in error.value.errors()} == {"gamma", "mode", "gama"}


def test_a_setting_may_be_called_like_a_pydantic_attribute():
    """`model_name` is a name a trainer may well want; pydantic reserves `model_`, and warns. Warnings are errors."""
    registry = Registry("trainer")

    @registry.register("sgd")
    def sgd(models, *, model_name: str = "cnn"):
        return models

    assert registry.bind("sgd", {"model_name": "mlp"}) == {"model_name": "mlp"}


def test_annotations_of_a_wrapped_function_are_those_of_the_function():
    registry = Registry("attack")

    def logged(fn):
        @wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)

        return inner

    @registry.register("logged")
    @logged
    def attack(evidence, *, gamma: Annotated[float, Gt(0)] = 2.0):
        return gamma

    assert registry.bind("logged", {}) == {"gamma": 2.0}
    with pytest.raises(ValidationError):
        registry.bind("logged", {"gamma": 0})


def test_two_functions_of_one_name_in_two_registries_keep_their_own_schemas():
    one, other = Registry("dataset"), Registry("model")

    @one.register("x")
    def x(*, a: int = 1):
        return a

    @other.register("x")
    def x_too(*, b: int = 2):
        return b

    assert one.bind("x", {}) == {"a": 1}
    assert other.bind("x", {}) == {"b": 2}


def test_the_four_registries_name_their_kind():
    assert [registry.kind for registry in (DATASETS, MODELS, TRAINERS, ATTACKS)] == [
        "dataset",
        "model",
        "trainer",
        "attack",
    ]


def test_core_imports_without_torch_or_scipy_stats():
    code = "import core.metrics, core.registry, core.rng, core.types, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "core.metrics" in loaded
    assert not {"torch", "scipy.stats", "sklearn", "pandas", "matplotlib"} & set(loaded)


def test_a_setting_without_a_type_is_named():
    things = Registry("thing")

    @things.register("bare")
    def bare(x, *, width=3): ...

    with pytest.raises(TypeError, match="the settings width need a type"):
        things.schema("bare")


def test_a_name_within_a_prefix_can_be_registered_after_it():
    things = Registry("thing")
    things.register("zoo/*")(lambda x: x)
    things.register("zoo/lion")(lambda x: 2 * x)
    assert things["zoo/lion"](1) == 2 and things["zoo/bear"](1) == 1
