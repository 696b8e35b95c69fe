"""Every mistake of a config is reported at its line, all at once; what is right is frozen and complete."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Gt

from core import reference
from core.config import load
from core.errors import UserError
from core.registry import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
run:
  log_dir: runs/x
data:
  dataset: digits
train:
  model_name: mlp
  epochs: 3
  batch_size: 32
  learning_rate: 0.1
audit:
  algorithm: [LOSS, {name: rmia, gamma: 2.0}]
  num_ref_models: 2
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


def mistakes(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, list(overrides))
    return [line.replace(str(path), "c.yaml") for line in str(caught.value).splitlines()]


def test_a_good_config_is_complete_with_defaults(write):
    config = load(write(GOOD))
    assert [call.name for call in config.attacks] == ["LOSS", "RMIA"]
    assert config.attacks[1].settings["gamma"] == 2.0
    assert config.trainer.name == "sgd" and config.trainer.settings["epochs"] == 3
    assert "momentum" in config.trainer.settings
    assert config.dataset.name == "digits" and config.run.num_experiments == 1


def test_six_mistakes_print_six_lines(write):
    bad = """\
run:
  log_dir: runs/x
  random_sed: 1
data:
  dataset: digitz
train:
  model_name: mlp
  epochs: 0
  batch_size: 32
  learning_rate: fast
  momentun: 0.9
audit:
  algorithm: RMIA
  num_ref_models: -1
"""
    lines = mistakes(write(bad))
    assert len(lines) == 6, lines
    expected = [
        ("c.yaml:3: run.random_sed: ", "unknown key; did you mean 'random_seed'?"),
        ("c.yaml:5: data.dataset: ", "did you mean 'digits'?"),
        ("c.yaml:8: train.epochs: ", "should be greater than"),
        ("c.yaml:10: train.learning_rate: ", "got 'fast'"),
        ("c.yaml:11: train.momentun: ", "unknown key; did you mean 'momentum'?"),
        ("c.yaml:14: audit.num_ref_models: ", "got -1"),
    ]
    for line, (start, part) in zip(lines, expected, strict=True):
        assert line.startswith(start) and part in line


def test_a_wrong_key_of_audit_hides_no_mistake_of_its_attacks(write):
    bad = GOOD.replace("[LOSS,", "[LOSS, RMIAA, {name: MultiLiRA, signals: [nope]},").replace("models: 2", "models: -2")
    lines = mistakes(write(bad), "audit.precision=half")
    assert len(lines) == 4, lines
    assert any("audit.algorithm.1: no attack is called 'RMIAA'" in line for line in lines)
    assert any("audit.algorithm.2.signals.0" in line for line in lines)  # and no line says that none are left
    assert any("audit.num_ref_models" in line and "too few" not in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("run:", "rum:", "c.yaml:1: rum: unknown key; did you mean 'run'?"),
        ("  log_dir: runs/x", "  random_seed: 3", "c.yaml:1: run.log_dir: missing"),
        ("  epochs: 3", "  epochs: 3\n  epochs: 4", "c.yaml:8: train.epochs: written twice"),
        ("  epochs: 3\n", "", "c.yaml:5: train.epochs: missing"),
        ("gamma: 2.0", "gama: 2.0", "c.yaml:11: audit.algorithm.1.gama: unknown key; did you mean 'gamma'"),
        ("gamma: 2.0", "gamma: -2.0", "c.yaml:11: audit.algorithm.1.gamma: should be greater"),
        ("name: rmia,", "nam: rmia,", "c.yaml:11: audit.algorithm.1: a attack with settings"),
        (
            "num_ref_models: 2",
            "num_ref_models: 0",
            "c.yaml:12: audit.num_ref_models: 0 is too few: RMIA (gamma=2.0) needs 1",
        ),
        ("{name: rmia, gamma: 2.0}", "LOSS", "c.yaml:11: audit.algorithm.1: LOSS is listed twice"),
        ("model_name: mlp", "model_name: {name: mlp, hiden: 3}", "c.yaml:6: train.model_name.hiden: unknown key"),
        ("train:\n", "train:\n  peft: {type: lora}\n", "c.yaml:6: train.peft: unknown key"),
    ],
)
def test_each_mistake_is_named_at_its_line(write, old, new, expected):
    assert old in GOOD
    lines = mistakes(write(GOOD.replace(old, new)))
    assert any(line.startswith(expected) for line in lines), lines


def test_a_file_that_is_not_yaml_is_named_with_its_line(write):
    assert mistakes(write("run: {log_dir: x\ndata: ["))[0].startswith("c.yaml:")
    assert "should hold the blocks" in mistakes(write("- 1\n- 2\n"))[0]
    assert "cannot be read" in mistakes(Path("no/such/file.yaml"))[0]


def test_yaml_cannot_construct_python_objects(write):
    lines = mistakes(write(GOOD + "x: !!python/object/apply:os.system ['true']\n"))
    assert "not valid YAML" in lines[0]


def test_set_overrides_before_validation(write):
    path = write(GOOD)
    config = load(path, ["train.epochs=7", "audit.algorithm=[LOSS]", "audit.data_size=5"])
    assert (config.trainer.settings["epochs"], config.audit.data_size, len(config.attacks)) == (7, 5, 1)
    assert "train.epochs=7" in config.source.text
    assert mistakes(path, "train.epochz=7")[0].startswith("--set train.epochz=7: train.epochz: unknown key")
    (line,) = mistakes(path, "audit.algorithm=[LOSS, {name: RMIA, gamma: -1}]")
    assert line.startswith("--set audit.algorithm=[LOSS, {name: RMIA, gamma: -1}]: audit.algorithm.1.gamma: should be")
    assert mistakes(path, "train.epochs")[0].startswith("--set train.epochs: should be key=value")
    assert mistakes(path, "train.epochs.deep=1")[0].startswith("--set train.epochs.deep=1")


def test_a_key_outside_of_its_block_is_told_where_it_belongs(write):
    (line,) = mistakes(write(GOOD), "random_seed=1")
    assert line == "--set random_seed=1: random_seed: unknown key; did you mean 'run.random_seed'?"


def test_scientific_notation_is_a_number(write):
    assert load(write(GOOD), ["train.learning_rate=1e-3"]).trainer.settings["learning_rate"] == 1e-3


def test_keys_that_do_nothing_are_warned_about_once(write):
    config = load(write(GOOD.replace("  dataset: digits", "  dataset: digits\n  tokenizer: gpt2")))
    (warning,) = config.warnings()
    assert warning.endswith("c.yaml:5: data.tokenizer: has no effect on digits and mlp")


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_validates_and_opens_with_its_command(path):
    load(path)
    assert path.read_text().startswith(f"# python main.py --cf {path.relative_to(ROOT)}")


def test_the_reference_in_configs_is_up_to_date():
    assert (ROOT / "configs/README.md").read_text() == reference.markdown() + "\n", "run `make docs`"


def test_every_registered_name_is_listed():
    for kind, registry in reference.KINDS.items():
        listed = reference.listing(kind)
        assert all(f"{name}: " in listed for name in registry), kind


def test_a_config_error_answers_without_importing_torch(write):
    path = write(GOOD.replace("digits", "digitz"))
    code = "import sys, main; code = main.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, "--cf", path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'digits'" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - start < 30  # typically under a second; a hang is what this guards against


def test_a_plugin_adds_an_attack_with_its_settings(write):
    from core.types import Evidence

    try:

        @ATTACKS.register("test-plugin", summary="for this test")
        def plugin(evidence: Evidence, *, width: Annotated[float, Gt(0)] = 1.0, kind: Literal["a", "b"] = "a"): ...

        config = load(write(GOOD), ["audit.algorithm={name: test-plugin, width: 2}"])
        assert config.attacks[0].settings == {"width": 2.0, "kind": "a"}
        lines = mistakes(write(GOOD), "audit.algorithm={name: test-plugin, kind: c, width: 0}")
        assert len(lines) == 2
    finally:
        del ATTACKS["test-plugin"]


def test_an_old_file_that_names_speedyresnet_gets_its_trainer(write):
    """The keys are those of the original tool, whose speedyresnet ignored them; here they count."""
    train = "model_name: speedyresnet\n  optimizer: SGD\n  weight_decay: 0\n  device: auto"
    config = load(write(GOOD.replace("model_name: mlp", train)))
    assert (config.trainer.name, config.model.name) == ("speedyresnet", "speedyresnet")
    settings = config.trainer.settings
    assert (settings["epochs"], settings["batch_size"], settings["learning_rate"]) == (3, 32, 0.1)
    assert load(write(GOOD.replace("mlp", "speedyresnet\n  trainer: sgd"))).trainer.name == "sgd"


def test_a_trainer_of_one_model_refuses_others_at_its_line(write):
    bad = mistakes(write(GOOD.replace("model_name: mlp", "model_name: mlp\n  trainer: speedyresnet")))
    why = "speedyresnet trains speedyresnet only, train.model_name is mlp: leave train.trainer out"
    assert bad == [f"c.yaml:7: train.trainer: {why}"]
