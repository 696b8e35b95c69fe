"""Every registered model is tested by existing."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import models
from core.errors import UserError
from core.registry import MODELS
from core.rng import stream

NAMED = [
    name
    for name in MODELS
    if not name.endswith("*") and MODELS[name].__module__.startswith("models.") and MODELS.fact(name, "needs") != "text"
]
IMAGE_MODELS = [name for name in NAMED if MODELS.fact(name, "needs") == "image"]
SMALL = [name for name in NAMED if name != "wrn28-10"]
LIBRARY = ["torchvision/mobilenet_v3_small", "torchvision/googlenet", "timm/resnet10t"]

torch.set_num_threads(1)


def build(name, input_shape, num_classes, **settings):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    return models.build(name, MODELS.bind(name, settings), input_shape, num_classes, stream(0, "init"))


def parameters(name, num_classes=10):
    return sum(p.numel() for p in build(name, (3, 32, 32), num_classes).parameters())


def learns_in_every_weight(model, input_shape, num_classes):
    logits = model(torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (4, num_classes)
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    return all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_issue_asked_for_these_models():
    assert {"mlp", "cnn", "alexnet", "wrn28-1", "wrn28-2", "wrn28-10", "vgg16", "resnet18"} <= set(NAMED)


@pytest.mark.parametrize("name", [*SMALL, *LIBRARY])
@pytest.mark.parametrize("input_shape", [(3, 32, 32), (1, 28, 28)])
def test_every_weight_of_every_model_gets_a_gradient_from_images(name, input_shape):
    assert learns_in_every_weight(build(name, input_shape, 10), input_shape, 10)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_takes_the_small_images_of_digits(name):
    assert learns_in_every_weight(build(name, (1, 8, 8), 10), (1, 8, 8), 10)


@pytest.mark.slow
def test_the_widest_model_learns():
    assert learns_in_every_weight(build("wrn28-10", (3, 8, 8), 10), (3, 8, 8), 10)


def test_an_mlp_takes_features():
    assert learns_in_every_weight(build("mlp", (600,), 100), (600,), 100)


def test_an_mlp_without_hidden_layers_is_linear():
    model = build("mlp", (5,), 3, hidden=[])
    x = torch.eye(5)
    assert torch.equal(model(x), torch.nn.functional.linear(x, model.fc1.weight, model.fc1.bias))


@pytest.mark.parametrize("name", [*NAMED, *LIBRARY])
@pytest.mark.parametrize("input_shape", [(3, 32, 32), (1, 28, 28), (3, 20, 48), (3, 224, 224)])
def test_check_accepts_what_can_be_built(name, input_shape):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    models.check(name, {}, input_shape, 7)


@pytest.mark.parametrize("name", [*IMAGE_MODELS, "torchvision/resnet18", "timm/resnet10t"])
@pytest.mark.parametrize("refuse", [models.check, lambda *call: models.build(*call, stream(0, "init"))])
def test_features_are_refused_by_models_of_images_with_a_way_out(name, refuse):
    with pytest.raises(UserError, match=rf"model {name} needs images .*\(600,\).*mlp"):
        refuse(name, {}, (600,), 10)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_an_image_of_one_pixel_is_refused_with_the_size_that_is_needed(name):
    with pytest.raises(UserError, match=rf"model {name} needs images of at least \d+ x \d+ pixels, got 1 x 1"):
        models.check(name, {}, (3, 1, 1), 10)


@pytest.mark.parametrize("name", sorted(set(IMAGE_MODELS) - {"wrn28-1", "wrn28-10"}))
def test_the_smallest_image_a_model_asks_for_is_enough(name):
    smallest = next(side for side in range(1, 40) if accepts(name, (3, side, side)))
    assert all(accepts(name, (3, side, side + 9)) for side in [smallest, 9, 15, 16, 17, 31, 32, 33])


def accepts(name, input_shape):
    try:
        models.check(name, {}, input_shape, 10)
    except UserError as error:
        assert "at least" in str(error), error
        return False
    return True


def test_a_library_model_that_cannot_take_the_images_is_refused_early():
    with pytest.raises(UserError, match=r"torchvision/vit_b_16 cannot run on records of shape \(3, 32, 32\)"):
        models.check("torchvision/vit_b_16", {}, (3, 32, 32), 10)


def test_unknown_names_say_what_was_meant():
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        models.check("resnet8", {}, (3, 32, 32), 10)
    with pytest.raises(UserError, match=r"torchvision has no classifier 'resnet51'.* torchvision/resnet50"):
        models.check("torchvision/resnet51", {}, (3, 32, 32), 10)


def test_a_missing_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="pip install timm"):
        models.check("timm/resnet10t", {}, (3, 32, 32), 10)


def test_one_class_is_not_a_classification():
    with pytest.raises(UserError, match="at least 2 classes"):
        models.check("mlp", {}, (5,), 1)


def test_names_match_whatever_their_case():
    assert [p.shape for p in build("CNN", (3, 32, 32), 10).parameters()] == [
        p.shape for p in build("cnn", (3, 32, 32), 10).parameters()
    ]


@pytest.mark.parametrize(
    ("name", "count"), [("wrn28-1", 369_498), ("wrn28-2", 1_467_610), ("resnet18", 11_173_962), ("vgg16", 14_728_266)]
)
def test_parameter_counts_are_the_published_ones(name, count):
    assert parameters(name) == count


def test_the_widest_model_has_the_published_36_5_million_weights():
    with torch.device("meta"):
        model = MODELS["wrn28-10"]((3, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 36_479_194


def test_weights_are_named_as_in_the_original_tool():
    assert set(build("mlp", (600,), 100).state_dict()) == {
        f"fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    cnn = build("cnn", (3, 32, 32), 10).state_dict()
    assert {name.partition(".")[0] for name in cnn} == {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert (cnn["conv1.weight"].shape, cnn["fc1.weight"].shape) == ((6, 3, 5, 5), (120, 400))
    wide = build("wrn28-2", (3, 32, 32), 10).state_dict()
    assert {f"layers.1.{part}.weight" for part in ("norm_1", "conv_1", "norm_2", "conv_2", "proj_conv")} <= set(wide)
    assert wide["layers.17.weight"].shape == (10, 128)
    alexnet = build("alexnet", (3, 32, 32), 10).state_dict()
    assert (alexnet["features.0.weight"].shape, alexnet["classifier.1.weight"].shape) == ((64, 3, 3, 3), (4096, 1024))


@pytest.mark.parametrize("name", ["wrn28-2", "resnet18", "vgg16"])
def test_batch_normalisation_forgets_at_a_tenth_per_step(name):
    """After one batch the running mean is 0.1 of the batch's, not 0.9 as the original tool had it."""
    model = build(name, (3, 32, 32), 10).train()
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    seen = []
    norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0)) + 1)
    torch.testing.assert_close(norm.running_mean, 0.1 * seen[0].mean(dim=(0, 2, 3)))


@pytest.mark.parametrize("name", ["mlp", "cnn", "wrn28-1", "resnet18"])
def test_weights_are_a_function_of_the_stream_alone(name):
    def weights(*purpose):
        state = models.build(name, {}, (3, 32, 32), 10, stream(0, *purpose)).state_dict()
        return torch.cat([v.flatten().float() for v in state.values()])

    first = weights("init", 3)
    torch.rand(5)
    assert torch.equal(first, weights("init", 3))
    assert not torch.equal(first, weights("init", 4))


def test_building_leaves_the_global_generators_alone():
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    build("cnn", (3, 32, 32), 10)
    models.check("cnn", {}, (3, 32, 32), 10)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_importing_models_and_trainers_imports_no_torch():
    code = "import sys, models, trainers; assert not {'torch', 'torchvision', 'timm', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_speedyresnet_is_the_published_airbench94_net_and_starts_as_the_identity():
    model = build("speedyresnet", (3, 32, 32), 10)
    # 9 (24 64 + 64² + 64 256 + 256² + 2 256²) weights in six convolutions, 10 x 256 of the head, biases.
    filters = 9 * (24 * 64 + 64**2 + 64 * 256 + 3 * 256**2)
    assert sum(p.numel() for p in model.parameters()) == filters + 2560 + 24 + 2 * (64 + 256 + 256)
    x = torch.randn(2, 64, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.group2.conv1(x)[:, :64], x)
    pooled = [model.whiten, model.group1, model.group2, model.group3]
    sides, image = [], torch.zeros(2, 3, 32, 32)
    for layer in pooled:
        image = layer(image)
        sides.append(image.shape[2])
    assert sides == [31, 15, 7, 3]


def test_speedyresnet_keeps_its_whitening_filter_with_the_weights_and_does_not_train_it():
    model = build("speedyresnet", (2, 9, 9), 4, widths=(4, 4, 4))
    assert "whiten.weight" in model.state_dict()
    assert {"whiten.weight"}.isdisjoint(dict(model.named_parameters()))
    filters = model.whiten.weight.flatten(1)
    torch.testing.assert_close(filters[:8] @ filters[:8].T, torch.eye(8))
    assert torch.equal(filters[8:], -filters[:8])


def test_speedyresnet_normalises_without_weights_and_scales_its_logits():
    model = build("speedyresnet", (1, 8, 8), 4, widths=(4, 4, 4), norm_momentum=0.7, output_scale=0.25)
    norm, x = model.group1.norm1, torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert [name for name, _ in norm.named_parameters()] == ["bias"]
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    torch.testing.assert_close(norm(x), (x - mean) / (variance + norm.eps).sqrt())
    torch.testing.assert_close(norm.running_mean, 0.3 * mean.flatten())
    pooled = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.scale(model.head(pooled)), 0.25 * pooled @ model.head.weight.T)
