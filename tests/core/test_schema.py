"""The JSON Schema that editors use says what the loader says."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from core import config
from core.errors import UserError
from core.schema import schema
from core.starter import schema_line, starter

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(ROOT.glob("configs/**/*.yaml"))
GOOD = """\
run: {log_dir: runs/x}
data: {dataset: digits}
train: {model_name: {name: MLP, hidden: [8]}, epochs: 3, learning_rate: 0.1}
audit: {algorithm: [loss, {name: rmia, gamma: 2.0}], num_ref_models: 2}
gate: {max: {tpr@0.01: 0.05, auc: 0.6}}
"""


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft7Validator.check_schema(schema())
    return jsonschema.Draft7Validator(schema())


def accepted(validator, text):
    return validator.is_valid(json.loads(json.dumps(yaml.safe_load(text))))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid_and_names_the_schema(path, validator):
    text = path.read_text()
    assert accepted(validator, text)
    assert text.splitlines()[1] == schema_line(path)


def test_the_committed_schema_is_up_to_date():
    assert json.loads((ROOT / "configs/schema.json").read_text()) == schema(), "run `make docs`"


def test_what_is_right_is_right_for_both(validator, tmp_path):
    (tmp_path / "c.yaml").write_text(GOOD)
    assert config.load(tmp_path / "c.yaml").gate.max == {"tpr@0.01": 0.05, "auc": 0.6}
    assert accepted(validator, GOOD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs", "epoch"),
        ("epochs: 3", "epochs: -3"),
        ("MLP", "MPL"),
        ("hidden: [8]", "hiden: [8]"),
        ("digits", "digitz"),
        ("loss", "lost"),
        ("gamma: 2.0", "gamma: -1"),
        ("algorithm", "algoritm"),
        ("gate:", "gat:"),
        ("tpr@0.01: 0.05", "tpr@0.01: 5"),
        ("auc: 0.6", "accuracy: 0.6"),
        ("run: {log_dir: runs/x}", "run: {}"),
        ("learning_rate: 0.1", "learning_rate: [0.1]"),
    ],
)
def test_what_is_wrong_is_wrong_for_both(old, new, validator, tmp_path):
    text = GOOD.replace(old, new)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError):
        config.load(tmp_path / "c.yaml")
    assert not accepted(validator, text)


def test_every_setting_is_described(validator):
    """What an editor shows beside a key: of each block's own keys, and of most settings of functions."""
    properties = validator.schema["properties"]
    for name in ("run", "audit", "gate"):
        assert all("description" in key for key in properties[name]["properties"].values()), name


def test_a_started_config_is_valid_as_it_stands_and_with_every_audit_switched_on(validator, tmp_path):
    path = tmp_path / "mine.yaml"
    text = starter(path)
    path.write_text(text)
    made = config.load(path)
    assert str(made.run.log_dir) == "runs/mine" and not made.modules
    assert accepted(validator, text)
    for block in ("ramia", "duci", "dp_audit"):
        path.write_text(text.replace(f"# {block}:", f"{block}:"))
        assert [call.name for call in config.load(path).modules] == [block]
    path.write_text(text.replace("# gate:", "gate:").replace("#   max:", "  max:"))
    assert config.load(path).gate


def test_what_a_started_config_says_of_defaults_is_true(tmp_path):
    """Each commented key, taken as it stands, changes nothing."""
    path = tmp_path / "mine.yaml"
    path.write_text(starter(path))
    plain = config.load(path)
    body, _, _ = starter(path).partition("# More audits")
    lines = [
        line.replace("  # ", "  ", 1) if line.startswith("  # ") and _is_key(line) else line
        for line in body.splitlines()
    ]
    path.write_text("\n".join(lines))
    spelt_out = config.load(path)
    assert sum(_is_key(line) for line in lines) > 35
    assert (plain.run, plain.audit, plain.data) == (spelt_out.run, spelt_out.audit, spelt_out.data)
    assert plain.dataset.settings == spelt_out.dataset.settings and plain.trainer.settings == spelt_out.trainer.settings


def _is_key(line):
    first = line.strip().removeprefix("# ").split(" ")[0]
    return first.endswith(":") and first[:-1].replace("_", "").isalpha()
