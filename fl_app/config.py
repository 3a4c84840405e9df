# SPDX-License-Identifier: Apache-2.0
"""The settings of the app, parsed and checked once from Flower's run config and node config.

Every setting is declared here and nowhere else; the table in the README is made from it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_registry.redaction import printable

RunConfigValues = Mapping[str, bool | float | int | str]

MODEL_STRIDE = 32
"""The largest stride of a YOLOv8 head: picture sizes must be multiples of it."""


PRIVATE = frozenset(
    {
        "mlflow_tracking_uri",
        "monitor_database_url",
        "webhook_url",
        "api_token_file",
        "webhook_secret_file",
    }
)
"""Settings that hold a secret, or lead to one: they are never logged."""
SHAPING = frozenset(
    {
        *("data", "partitioning", "alpha", "seed", "batch_size", "local_epochs", "learning_rate"),
        *("model_size", "num_classes", "image_size", "metric", "metric_mode"),
        *("fraction_train", "fraction_evaluate", "min_nodes"),
        *("max_examples_per_node", "max_update_norm", "norm_action", "update_compression"),
    }
)
"""Settings that shape the model: a session that was cut short goes on only with the same ones."""


class ConfigError(ValueError):
    """A setting is unknown, or its value has the wrong type or range."""

    def __init__(self, said: str) -> None:
        super().__init__(printable(said))


class _Settings(BaseModel):
    """Settings that the server and the clients read alike."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="ignore", alias_generator=lambda n: n.replace("_", "-")
    )

    home: str = Field(
        "",
        description="Folder for everything the app keeps; empty: `$FL_APP_HOME`, else `~/.fl-app`.",
    )
    data: str = Field(
        "",
        description="Absolute path of an Ultralytics `data.yaml`; empty: generated shapes.",
    )
    partitioning: Literal["iid", "dirichlet"] = Field(
        "iid", description="How a simulation divides the training pictures over the nodes."
    )
    alpha: float = Field(
        0.5, gt=0, description="Label skew of `dirichlet`: the smaller, the more skewed."
    )
    seed: int = Field(42, ge=0, description="Seed of partitions, first weights and local rounds.")
    model_size: Literal["n", "s", "m", "l", "x"] = Field("n", description="Size of YOLOv8.")
    num_classes: int = Field(7, ge=1, description="Classes of the model; `data.yaml` must agree.")
    image_size: int = Field(
        96, ge=32, multiple_of=MODEL_STRIDE, description="Side of a picture in pixels."
    )
    batch_size: int = Field(16, ge=1, description="Pictures per optimizer step.")

    @classmethod
    def from_run_config(
        cls, run_config: RunConfigValues, node_config: RunConfigValues | None = None
    ) -> Self:
        """Check ``run_config`` (and what a node says of itself) and return the settings.

        Raises
        ------
        ConfigError
            One sentence on the first unknown key or wrong value.
        """
        known = {_key(name) for kind in (ServerConfig, ClientConfig) for name in kind.model_fields}
        for key in run_config:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(known)}."
                raise ConfigError(f"Unknown run-config key {key!r}: {hint}")
        merged = {**run_config, **cls._from_node(node_config or {})}
        try:
            return cls.model_validate(merged)
        except ValidationError as err:
            raise ConfigError(_sentence(err)) from None

    def params(self) -> dict[str, Any]:
        """Return the settings that a run logs, by their names in the run config."""
        return self.model_dump(by_alias=True, exclude=set(PRIVATE))

    @classmethod
    def _from_node(cls, node_config: RunConfigValues) -> dict[str, Any]:
        return {}


class ServerConfig(_Settings):
    """What the ServerApp reads."""

    num_server_rounds: int = Field(8, ge=1, description="Rounds of a session.")
    min_nodes: int = Field(2, ge=1, description="Nodes that must be there before a round starts.")
    fraction_train: float = Field(1.0, gt=0, le=1, description="Share of nodes asked to train.")
    fraction_evaluate: float = Field(
        1.0, ge=0, le=1, description="Share of nodes asked to evaluate; 0 asks none."
    )
    node_wait_timeout: float = Field(
        600.0, gt=0, description="Seconds to wait for `min-nodes`; then the run fails."
    )
    round_timeout: float = Field(
        3600.0,
        gt=0,
        description="Seconds to wait for replies; the round goes on with those that came.",
    )
    pack_arrays: bool = Field(
        True, description="Send a model as one array over a SuperLink; hundreds take it seconds."
    )
    patience: int = Field(
        0,
        ge=0,
        description="Rounds without a better metric after which a session stops; 0: never.",
    )
    min_delta: float = Field(0.0, ge=0, description="Better means by more than this.")
    when_busy: Literal["wait", "refuse"] = Field(
        "wait", description="What to do while another server trains the same model."
    )
    max_examples_per_node: float = Field(
        1e8, gt=0, description="A reply that tells of more examples than this does not count."
    )
    max_update_norm: float = Field(
        0.0,
        ge=0,
        description="Largest L2 norm of the difference between a reply and the model; 0: none.",
    )
    norm_action: Literal["clip", "refuse"] = Field(
        "clip", description="Beyond it, scale the difference down, or let the reply not count."
    )
    learning_rate: float = Field(
        0.002, gt=0, description="Rate at its height; halved in round 1, then falling to a tenth."
    )
    metric: str = Field("mAP50", min_length=1, description="The metric that gates look at.")
    metric_mode: Literal["max", "min"] = Field("max", description="Whether more or less is better.")
    staging_threshold: float = Field(
        0.5, description="A version at least this good may go to Staging."
    )
    champion_margin: float = Field(
        0.0, ge=0, description="How much better than Production a version must be to replace it."
    )
    champion_confidence: float = Field(
        0.95,
        ge=0,
        lt=1,
        description="How sure that must be, picture by picture; 0: the two scores alone decide.",
    )
    class_margin: float = Field(
        0.1,
        ge=0,
        description="How much worse than Production a version may be in any one class.",
    )
    approval: Literal["manual", "auto"] = Field(
        "manual",
        description="`manual`: Production waits for a person; `auto`: the best goes there.",
    )
    shadow_rounds: int = Field(
        0,
        ge=0,
        description="Rounds in which nodes compare what waits for approval with Production; "
        "0: none.",
    )
    shadow_confidence: float = Field(
        0.95, gt=0, lt=1, description="How sure they must be; what is surely worse is archived."
    )
    shadow_ab_test: bool = Field(
        False, description="Each node scores one of the two only; needs many more nodes."
    )
    restart_from: Literal["production", "latest", "scratch"] = Field(
        "production",
        description="Weights a session starts with; `production` falls back to Staging, "
        "then to the latest version.",
    )
    resume: Literal["auto", "require", "fresh"] = Field(
        "auto",
        description="A session that was cut short: `auto` goes on with it if the settings that "
        "shape the model are the same, `require` does or refuses, `fresh` begins anew.",
    )
    accuracy_threshold: float = Field(
        0.05, gt=0, description="Lasting fall of the metric that asks for retraining."
    )
    degradation_policy: Literal["capped_cusum", "best_minus_threshold"] = Field(
        "capped_cusum", description="How the monitor tells a fall from noise."
    )
    min_rounds_between_retrain: int = Field(
        10, ge=0, description="Rounds after a retraining before the monitor may ask again."
    )
    min_hours_between_retrain: float = Field(
        24.0, ge=0, description="Hours after a retraining before the monitor may ask again."
    )
    retrain_budget: int = Field(
        4, ge=0, description="Retrainings in 30 days that the monitor may ask for."
    )
    on_request: Literal["auto", "suggest"] = Field(
        "auto", description="`suggest`: the monitor's requests are written down for a person."
    )
    drift_false_alarm_days: float = Field(
        365.0, gt=0, description="Days on average, at least, before a false alarm of drift."
    )
    drift_min_effect: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Smallest shift of the data that matters; 0.05: an eighth of a standard "
        "deviation.",
    )
    drift_season: str = Field(
        "24h",
        pattern=r"^([1-9][0-9]*[mhd])?$",
        description="Time after which data repeat themselves (`90m`, `24h`, `7d`); empty: the "
        "last 12 checks decide.",
    )
    drift_policy: Literal["evidence", "per_check"] = Field(
        "evidence", description="`per_check`: any p < 0.05 in any round asks for retraining."
    )
    probation_watch: str = Field(
        "federated,feed",
        pattern=r"^((federated|feed|drift)(, ?(federated|feed|drift))*)?$",
        description="What may bring the version before back after a promotion: sessions, reports "
        "to the API, `drift`; empty: nothing.",
    )
    probation_drop: float = Field(
        0.1, gt=0, description="Fall of the accuracy, or of the metric, that is critical then."
    )
    probation_in_a_row: int = Field(
        3, ge=1, description="Critical reports in a row that are needed."
    )
    probation_hours: float = Field(
        24.0, ge=0, description="Hours after a promotion that a probation lasts at least."
    )
    probation_reports: int = Field(
        10, ge=1, description="Reports, or else one session, that must have been all right by then."
    )
    probation_max_latency_ms: float = Field(
        0.0, ge=0, description="Mean latency above which a report is critical; 0: no limit."
    )
    probation_min_throughput: float = Field(
        0.0, ge=0, description="Predictions a second below which a report is critical; 0: no limit."
    )
    retrain_interval_days: float = Field(
        0.0, ge=0, description="Ask for retraining each so many days; 0: do not."
    )
    retrain_cron: str = Field(
        "", description="Ask for retraining at the times of a cron expression, in UTC."
    )
    continuous: bool = Field(
        False, description="After a session wait for the next request instead of ending."
    )
    api_port: int = Field(
        5001,
        ge=0,
        le=65535,
        description="Port of the REST API that a `continuous` server opens; 0: none.",
    )
    api_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address it listens on; any that others can reach needs a token.",
    )
    api_allowed_hosts: str = Field(
        "",
        description="Names that clients call it by, with commas; this machine's own are allowed.",
    )
    api_token_file: str = Field(
        "", description="File with the API's token; empty: `$FL_APP_API_TOKEN`, else none."
    )
    webhook_url: str = Field(
        "", description="URL that each event is posted to, signed; empty: none."
    )
    webhook_secret_file: str = Field(
        "",
        description="File with the key of the signature; empty: `$FL_APP_WEBHOOK_SECRET`.",
    )
    webhook_hosts: str = Field(
        "",
        description="Hosts it may go to, with commas; those may be private. Empty: any public "
        "one, by https.",
    )
    log_events: bool = Field(
        False, description="Whether each event is a line of JSON in the log as well."
    )
    monitor_database_url: str = Field(
        "", description="SQLAlchemy URL of the monitor's memory; empty: SQLite in `home`."
    )
    max_retrains: int = Field(1, ge=0, description="Sessions that one run may add by itself.")
    mlflow_tracking_uri: str = Field(
        "",
        description="MLflow to use; empty: `$FL_APP_MLFLOW_TRACKING_URI`, else SQLite in `home`.",
    )
    registered_model_name: str = Field(
        "fl-global-model", min_length=1, description="Name in the model registry."
    )
    experiment_name: str = Field("fl-app", min_length=1, description="MLflow experiment.")

    def learning_rate_of(self, server_round: int) -> float:
        """Learning rate of a global round: half in round 1, then linearly down to a tenth."""
        if server_round == 1:
            return self.learning_rate / 2
        done = (server_round - 1) / max(1, self.num_server_rounds - 1)
        return self.learning_rate * (1 - 0.9 * done)


class ClientConfig(_Settings):
    """What a ClientApp reads; ``data`` of the node config goes before that of the run."""

    local_epochs: int = Field(2, ge=1, description="Epochs of a local round.")
    threads: int = Field(1, ge=1, description="CPU threads of a local round.")
    data_summaries: bool = Field(
        True, description="Whether nodes tell counts of their new pictures, for drift."
    )
    summary_epsilon: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Differential privacy of a summary's pictures, delta 1e-5; 0: no noise.",
    )
    update_compression: Literal["none", "float16", "int8"] = Field(
        "none",
        description="How nodes send what they learned: in half of float32's bytes, or a quarter.",
    )
    partition_id: int | None = Field(None, ge=0, exclude=True)
    num_partitions: int | None = Field(None, ge=1, exclude=True)

    @classmethod
    def _from_node(cls, node_config: RunConfigValues) -> dict[str, Any]:
        if "data" in node_config:
            return {"data": node_config["data"]}
        return {k: node_config[k] for k in ("partition-id", "num-partitions") if k in node_config}


def not_shaping() -> frozenset[str]:
    """The keys of the settings that may change before a session goes on."""
    fields = {**ServerConfig.model_fields, **ClientConfig.model_fields}
    return frozenset(_key(name) for name in fields if name not in SHAPING)


def settings_table() -> str:
    """All settings as a Markdown table, in the order of this file."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    fields = {**ServerConfig.model_fields, **ClientConfig.model_fields}
    for name, field in fields.items():
        if not field.exclude:
            default = json.dumps(field.default)
            rows.append(f"| `{_key(name)}` | `{default}` | {field.description} |")
    return "\n".join(rows)


def absolute_data(data: str) -> Path:
    """Path of a ``data.yaml``; relative ones mean another folder on every machine, so no.

    Raises
    ------
    ConfigError
        If it is an address or a relative path.
    """
    if "://" in data:
        raise ConfigError(
            f"data={data!r} is an address, and nothing is downloaded here; "
            "fetch the data set yourself and give the absolute path of its data.yaml."
        )
    try:
        path = Path(data).expanduser()
    except RuntimeError:  # ~somebody who is not there
        path = Path()
    if not path.is_absolute():
        raise ConfigError(
            f"data={data!r} is a relative path, which Flower's processes would look for in another "
            "folder; give the absolute path of the data.yaml."
        )
    return path


def _key(name: str) -> str:
    return name.replace("_", "-")


def _sentence(err: ValidationError) -> str:
    first = err.errors()[0]
    key, given = str(first["loc"][0]), first["input"]
    return f"Run-config key {key!r} is {given!r}: {first['msg'].lower()}; change it and run again."
