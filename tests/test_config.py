# SPDX-License-Identifier: Apache-2.0
"""Settings: which values are rejected with which sentence; pyproject and README agree with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from fl_app.config import (
    ClientConfig,
    ConfigError,
    ServerConfig,
    absolute_data,
    declared,
    settings_table,
)
from fl_app.strategy import Screening

ROOT = Path(__file__).parents[1]
DEFAULTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def test_pyproject_has_every_setting_with_its_default() -> None:
    assert {key: setting.key_default for key, setting in declared().items()} == DEFAULTS


def test_the_readme_s_table_is_the_one_made_from_the_settings() -> None:
    assert settings_table() in (ROOT / "README.md").read_text()


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
    with pytest.raises(ConfigError, match=r"'learning_rat'.*'learning-rate'"):
        kind.from_run_config({**DEFAULTS, "learning_rat": 0.1})


def test_a_node_s_own_data_go_before_the_run_s_and_need_no_partition() -> None:
    node = {"data": "/mine/data.yaml", "partition-id": 1, "num-partitions": 2}
    config = ClientConfig.from_run_config({**DEFAULTS, "data": "/theirs/data.yaml"}, node)
    assert (config.data, config.partition_id) == ("/mine/data.yaml", None)


def test_a_simulated_node_has_a_partition() -> None:
    node = {"partition-id": 1, "num-partitions": 2}
    config = ClientConfig.from_run_config(DEFAULTS, node)
    assert (config.partition_id, config.num_partitions) == (1, 2)


def test_a_relative_data_path_is_refused() -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        absolute_data("data/data.yaml")


def test_the_learning_rate_rises_once_then_falls_to_a_tenth() -> None:
    config = ServerConfig.from_run_config(DEFAULTS)
    rates = [config.learning_rate_of(r) for r in range(1, config.num_server_rounds + 1)]
    assert rates[0] == config.learning_rate / 2
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] == pytest.approx(config.learning_rate / 10)
