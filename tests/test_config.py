# SPDX-License-Identifier: Apache-2.0
"""Settings: which values are rejected with which sentence; pyproject and docs agree with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flwr.common.config import parse_config_args

from fl_app.config import (
    ClientConfig,
    ConfigError,
    ServerConfig,
    absolute_data,
    declared,
    node_keys,
    settings_table,
)
from fl_app.strategy import Screening

ROOT = Path(__file__).parents[1]
DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_pyproject_has_every_setting_with_its_default() -> None:
    assert {key: setting.key_default for key, setting in declared().items()} == DEFAULTS


def test_the_page_s_table_is_the_one_made_from_the_settings() -> None:
    assert settings_table() in (ROOT / "docs" / "settings.md").read_text()


def test_defaults_are_valid_on_both_sides() -> None:
    assert ServerConfig.from_run_config(DEFAULTS).metric == "mAP50"
    assert ClientConfig.from_run_config(DEFAULTS).local_epochs == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num-server-rounds", 0, "1 or more"),
        ("num-server-rounds", "8", "valid integer"),
        ("num-server-rounds", True, "valid integer"),
        ("fraction-train", 1.5, "1 or less"),
        ("metric-mode", "maximum", "'max' or 'min'"),
        ("approval", "nobody", "'manual' or 'auto'"),
        ("image-size", 100, "multiple of 32"),
        ("alpha", 0.0, "more than 0"),
        ("model", "", "a text"),
        ("home", 3, "valid string"),
        ("server-device", "gpu", "'auto', 'cpu', 'cuda', 'cuda:1' and so on, or 'mps'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(key: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_run_config({**DEFAULTS, key: value})
    assert key in str(caught.value)
    assert repr(value) in str(caught.value)
    assert said in str(caught.value)


def test_the_value_that_means_off_is_none_in_the_record() -> None:
    config = ServerConfig.from_run_config({"champion-confidence": 0.0, "drift-season": ""})
    assert config.policy.confidence is None
    assert config.drift.season is None
    assert (config.early_stopping, config.shadow, config.home) == (None, None, None)


def test_a_wrong_value_is_reported_even_where_the_record_is_off() -> None:
    with pytest.raises(ConfigError, match=r"'min-delta' is -0.5, expected 0 or more"):
        ServerConfig.from_run_config({"patience": 0, "min-delta": -0.5})
    with pytest.raises(ConfigError, match="'patience' is -1, expected 1 or more, or 0"):
        ServerConfig.from_run_config({"patience": -1})
    with pytest.raises(ConfigError, match="'patience' is False, expected a valid integer"):
        ServerConfig.from_run_config({"patience": False})


def test_texts_with_commas_are_tuples() -> None:
    given = {"probation-watch": "drift, feed", "api-allowed-hosts": "a.example , b.example"}
    config = ServerConfig.from_run_config(given)
    assert config.probation.watch == ("drift", "feed")
    assert config.api.allowed_hosts == ("a.example", "b.example")


def test_a_record_checks_itself_with_the_same_words() -> None:
    with pytest.raises(ValueError, match=r"^norm_action is 'drop', expected 'clip' or 'refuse'"):
        Screening(norm_action="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'norm-action' is 'drop', expected 'clip' or 'refuse'"):
        ServerConfig.from_run_config({"norm-action": "drop"})


def test_every_setting_has_a_meaning() -> None:
    assert [key for key, setting in declared().items() if not setting.meaning] == []


def test_whole_numbers_do_for_fractions() -> None:
    assert ServerConfig.from_run_config({**DEFAULTS, "fraction-train": 1}).fraction_train == 1.0


@pytest.mark.parametrize("kind", [ServerConfig, ClientConfig])
def test_an_unknown_key_is_refused_with_the_nearest_known_one(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"'train_args'.*'train-args'"):
        kind.from_run_config({**DEFAULTS, "train_args": ""})


def test_a_node_s_own_data_go_before_the_run_s_and_need_no_partition() -> None:
    node = {"data": "/mine/data.yaml", "partition-id": 1, "num-partitions": 2}
    config = ClientConfig.from_run_config({**DEFAULTS, "data": "/theirs/data.yaml"}, node)
    assert (config.data, config.partition_id) == ("/mine/data.yaml", None)


def test_a_simulated_node_has_a_partition() -> None:
    node = {"partition-id": 1, "num-partitions": 2}
    config = ClientConfig.from_run_config(DEFAULTS, node)
    assert (config.partition_id, config.num_partitions) == (1, 2)


NODE = {"partition-id": 0, "num-partitions": 2}


def test_a_node_sets_its_own_hardware_and_the_run_s_values_hold_for_the_rest() -> None:
    own = {"device": "cuda:1", "amp": "bf16", "workers": 3, "cache": "disk", "threads": 8}
    config = ClientConfig.from_run_config(
        {**DEFAULTS, "threads": 2, "local-epochs": 5}, {**NODE, **own, "batch-size": 4}
    )
    assert {key: getattr(config, key) for key in own} == own
    assert (config.batch_size, config.local_epochs, config.partition_id) == (4, 5, 0)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"dta": "/x/data.yaml"}, "Unknown node-config key 'dta': did you mean 'data'?"),
        ({"batch_size": 4}, "'batch_size': did you mean 'batch-size'?"),
        (
            {"colour": "red"},
            "Unknown node-config key 'colour': known are ['allow-",
        ),
        ({"local-epochs": 9}, "'local-epochs' is a setting of the whole run, expected one of ['a"),
        ({"threads": "8"}, "Node-config key 'threads' is '8', expected a valid integer. Change it"),
        ({"batch-size": 0}, "Node-config key 'batch-size' is 0, expected 1 or more. Change it"),
        ({"device": "gpu"}, "'device' is 'gpu', expected 'auto', 'cpu', 'cuda', 'cuda:1' and so"),
        ({"device": 0}, "Node-config key 'device' is 0, expected a valid string."),
        ({"amp": True}, "'amp' is True, expected 'auto', 'off', 'bf16' or 'fp16'"),
        ({"data": ""}, "Node-config key 'data' is empty, expected the absolute path"),
        ({"partition-id": 0}, "partition-id=0 and num-partitions=None, expected both or neither"),
        ({"partition-id": -1, "num-partitions": 2}, "'partition-id' is -1, expected 0 or more"),
    ],
)
def test_a_wrong_node_config_is_refused_in_one_sentence(node: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ClientConfig.from_run_config(DEFAULTS, node)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_page_on_hardware_names_what_a_node_may_set_and_its_examples_are_read() -> None:
    page = (ROOT / "docs" / "hardware.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(.*)` \|$", page, re.MULTILINE)
    assert [key for key, _ in rows] == list(node_keys())
    (line,) = re.findall(r"```toml\n(.*?)\n```", page, re.DOTALL)
    for text in (line, *(example for _, example in rows)):
        given = parse_config_args([text])
        config = ClientConfig.from_run_config(DEFAULTS, given)
        assert {key: getattr(config, key.replace("-", "_")) for key in given} == given


def test_keys_that_are_no_settings_may_be_in_a_node_config() -> None:
    config = ClientConfig.from_run_config(DEFAULTS, {**NODE, "data-summaries": "/a/folder"})
    assert config.data_summaries is True


def test_a_relative_data_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        absolute_data("data/data.yaml")
