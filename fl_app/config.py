# SPDX-License-Identifier: Apache-2.0
"""The settings of the app: the records that its run config fills, read and checked once.

A part that other apps use declares its settings in its own record, such as `Screening`; the
settings of this app alone are declared here. The table in the README is made from both by
``python -m fl_app.config``.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

from fl_app.retraining import DriftSettings, ProbationSettings, RetrainPolicy
from fl_app.settings import (
    Key,
    Setting,
    SettingError,
    Value,
    check_settings,
    keyed_settings,
    read_settings,
)
from fl_app.strategy import EarlyStopping, Screening, ShadowEvaluation
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import printable

T = TypeVar("T")
Partitioning = Literal["iid", "dirichlet"]

MODEL_STRIDE = 32
"""The largest stride of a YOLOv8 head: picture sizes must be multiples of it."""


class ConfigError(ValueError):
    """A setting is unknown, or its value has the wrong type or range."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """The arguments of `fl_app.strategy.default_policy`.

    Attributes
    ----------
    threshold : float
        The score that a version must reach before it may be staged.
    margin : float
        How much better than Production a version must be to replace it.
    confidence : float | None
        Confidence that it is better, from a paired test over the pictures; None: only the two
        scores are compared.
    class_margin : float
        How much worse than Production a version may be in any one class.
    """

    threshold: Annotated[float, Key("staging-threshold")] = 0.5
    margin: Annotated[float, Field(ge=0), Key("champion-margin")] = 0.0
    confidence: Annotated[float | None, Field(gt=0, lt=1), Key("champion-confidence", off=0.0)] = (
        0.95
    )
    class_margin: Annotated[float, Field(ge=0), Key()] = 0.1


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """The REST API of a server that waits for requests.

    Attributes
    ----------
    port : int
        Port of the REST API that a ``continuous`` server opens; 0: none.
    host : str
        Address that the API listens on; one that other machines can reach requires a token.
    allowed_hosts : tuple[str, ...]
        Host names that clients may use, with commas; those of this machine are always allowed.
    token_file : str | None
        File with the API's token; None: ``$FL_APP_API_TOKEN``, else no token.
    """

    port: Annotated[int, Field(ge=0, le=65535), Key("api-port")] = 5001
    host: Annotated[str, Field(min_length=1), Key("api-host")] = "127.0.0.1"
    allowed_hosts: Annotated[tuple[str, ...], Key("api-allowed-hosts", listed=True)] = ()
    token_file: Annotated[str | None, Key("api-token-file", off="", private=True)] = None


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """Where events are posted to.

    Attributes
    ----------
    url : str | None
        URL that each event is posted to, signed; None: none.
    secret_file : str | None
        File with the key of the signature; None: ``$FL_APP_WEBHOOK_SECRET``.
    hosts : tuple[str, ...]
        Hosts that may be posted to, with commas, which may be private; empty: any public host, by
        https.

    Raises
    ------
    ConfigError
        If ``secret_file`` or ``hosts`` is set without ``url``.
    """

    url: Annotated[str | None, Key("webhook-url", off="", private=True)] = None
    secret_file: Annotated[str | None, Key("webhook-secret-file", off="", private=True)] = None
    hosts: Annotated[tuple[str, ...], Key("webhook-hosts", listed=True)] = ()

    def __post_init__(self) -> None:
        if self.url is None and (self.hosts or self.secret_file):
            raise ConfigError(
                "webhook-hosts or webhook-secret-file is set and webhook-url is not, so no event "
                "would be posted; set webhook-url, or leave the others out."
            )


@dataclass(frozen=True, kw_only=True)
class _SharedSettings:
    """Settings that the server and the clients read alike.

    Attributes
    ----------
    home : str | None
        Folder for everything that the app stores; None: ``$FL_APP_HOME``, else ``~/.fl-app``.
    data : str | None
        Absolute path of an Ultralytics ``data.yaml``; None: generated shapes.
    partitioning : "iid" | "dirichlet"
        How a simulation divides the training pictures over the nodes.
    alpha : float
        Label skew of ``dirichlet``: the smaller, the more skewed.
    seed : int
        Seed of partitions, first weights and local rounds.
    model_size : "n" | "s" | "m" | "l" | "x"
        Size of YOLOv8.
    num_classes : int
        Classes of the model; ``data.yaml`` must have as many.
    image_size : int
        Side of a picture in pixels.
    batch_size : int
        Pictures per optimizer step.
    """

    home: Annotated[str | None, Key(off="")] = None
    data: Annotated[str | None, Key(off="", shaping=True)] = None
    partitioning: Annotated[Partitioning, Key(shaping=True)] = "iid"
    alpha: Annotated[float, Field(gt=0), Key(shaping=True)] = 0.5
    seed: Annotated[int, Field(ge=0), Key(shaping=True)] = 42
    model_size: Annotated[Literal["n", "s", "m", "l", "x"], Key(shaping=True)] = "n"
    num_classes: Annotated[int, Field(ge=1), Key(shaping=True)] = 7
    image_size: Annotated[int, Field(ge=32, multiple_of=MODEL_STRIDE), Key(shaping=True)] = 96
    batch_size: Annotated[int, Field(ge=1), Key(shaping=True)] = 16


@dataclass(frozen=True, kw_only=True)
class ServerConfig(_SharedSettings):
    """What the ServerApp reads.

    Attributes
    ----------
    num_server_rounds : int
        Rounds of a session.
    min_nodes : int
        Nodes that must be connected before a round starts.
    fraction_train : float
        Share of nodes that train in a round.
    fraction_evaluate : float
        Share of nodes that evaluate in a round; 0: none.
    learning_rate : float
        Highest learning rate; round 1 has half of it, and it falls to a tenth.
    round_timeout : float
        Seconds to wait for replies; the round continues with those that arrived.
    node_wait_timeout : float
        Seconds to wait for ``min-nodes``; then the run fails.
    pack_arrays : bool
        Send a model as one array over a SuperLink; hundreds of arrays take seconds.
    screening : Screening
        Which replies count.
    early_stopping : EarlyStopping | None
        When a session stops before its last round.
    metric : str
        Metric that gates and the monitor look at.
    metric_mode : "max" | "min"
        Whether more or less of ``metric`` is better.
    policy : PolicySettings
        Gates before the stages.
    approval : "manual" | "auto"
        ``manual``: Production waits for a person; ``auto``: the best version is promoted.
    shadow : ShadowEvaluation | None
        Rounds that compare a version that waits for approval with Production.
    restart_from : "production" | "latest" | "scratch"
        Weights that a session starts with; ``production`` falls back to Staging, then to the latest
        version.
    resume : "auto" | "require" | "fresh"
        An interrupted session: ``auto`` resumes it if the settings that shape the model are the
        same, ``require`` resumes it or fails, ``fresh`` starts anew.
    when_busy : "wait" | "refuse"
        What to do while another server trains the same model.
    continuous : bool
        After a session wait for the next request instead of ending.
    max_retrains : int
        Sessions that one run may add by itself.
    accuracy_threshold : float
        Lasting fall of the metric that requests retraining.
    degradation_policy : "capped_cusum" | "best_minus_threshold"
        How the monitor distinguishes a fall from noise.
    limits : RetrainPolicy
        Limits of the monitor's requests.
    retrain_interval_days : float | None
        Days between scheduled retrainings; None: no schedule.
    retrain_cron : str | None
        Cron expression, in UTC, of scheduled retrainings; None: no schedule.
    drift : DriftSettings
        When the nodes' data have drifted.
    probation : ProbationSettings
        When a promoted version is rolled back.
    api : ApiSettings
        The REST API.
    webhook : WebhookSettings
        Where events are posted to.
    log_events : bool
        Log each event as a line of JSON as well.
    monitor_database_url : str | None
        SQLAlchemy URL of the monitor's database; None: SQLite in ``home``.
    mlflow_tracking_uri : str | None
        MLflow to use; None: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``$MLFLOW_TRACKING_URI``, else
        SQLite in ``home``.
    registered_model_name : str
        Name in the model registry.
    experiment_name : str
        MLflow experiment.

    Raises
    ------
    ConfigError
        If shadow rounds are requested and no node evaluates.
    """

    num_server_rounds: Annotated[int, Field(ge=1), Key()] = 8
    min_nodes: Annotated[int, Field(ge=1), Key(shaping=True)] = 2
    fraction_train: Annotated[float, Field(gt=0, le=1), Key(shaping=True)] = 1.0
    fraction_evaluate: Annotated[float, Field(ge=0, le=1), Key(shaping=True)] = 1.0
    learning_rate: Annotated[float, Field(gt=0), Key(shaping=True)] = 0.002
    round_timeout: Annotated[float, Field(gt=0, allow_inf_nan=True), Key()] = 3600.0
    node_wait_timeout: Annotated[float, Field(gt=0, allow_inf_nan=True), Key()] = 600.0
    pack_arrays: Annotated[bool, Key()] = True
    screening: Screening
    early_stopping: EarlyStopping | None
    metric: Annotated[str, Field(min_length=1), Key(shaping=True)] = "mAP50"
    metric_mode: Annotated[Literal["max", "min"], Key(shaping=True)] = "max"
    policy: PolicySettings
    approval: Annotated[Literal["manual", "auto"], Key()] = "manual"
    shadow: ShadowEvaluation | None
    restart_from: Annotated[Literal["production", "latest", "scratch"], Key()] = "production"
    resume: Annotated[Literal["auto", "require", "fresh"], Key()] = "auto"
    when_busy: Annotated[Literal["wait", "refuse"], Key()] = "wait"
    continuous: Annotated[bool, Key()] = False
    max_retrains: Annotated[int, Field(ge=0), Key()] = 1
    accuracy_threshold: Annotated[float, Field(gt=0), Key()] = 0.05
    degradation_policy: Annotated[Literal["capped_cusum", "best_minus_threshold"], Key()] = (
        "capped_cusum"
    )
    limits: RetrainPolicy
    retrain_interval_days: Annotated[float | None, Field(gt=0), Key(off=0.0)] = None
    retrain_cron: Annotated[str | None, Key(off="")] = None
    drift: DriftSettings
    probation: ProbationSettings
    api: ApiSettings
    webhook: WebhookSettings
    log_events: Annotated[bool, Key()] = False
    monitor_database_url: Annotated[str | None, Key(off="", private=True)] = None
    # A deployment names MLflow in the environment of its SuperLink instead: an address may hold a
    # password, and everybody who may list runs can read a run config.
    mlflow_tracking_uri: Annotated[str | None, Key(off="", private=True)] = None
    registered_model_name: Annotated[str, Field(min_length=1), Key()] = DEFAULT_MODEL_NAME
    experiment_name: Annotated[str, Field(min_length=1), Key()] = "fl-app"

    def __post_init__(self) -> None:
        if self.shadow is not None and not self.fraction_evaluate:
            raise ConfigError(
                f"shadow-rounds={self.shadow.rounds} needs nodes that evaluate, and "
                "fraction-evaluate=0.0 selects none; change one of the two."
            )

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Value]) -> Self:
        """Check ``run_config`` and return the settings.

        Raises
        ------
        ConfigError
            One sentence on the first unknown key or wrong value.
        """
        return _read(cls, run_config)

    def learning_rate_of(self, server_round: int) -> float:
        """Learning rate of a global round: half in round 1, then linearly down to a tenth."""
        if server_round == 1:
            return self.learning_rate / 2
        done = (server_round - 1) / max(1, self.num_server_rounds - 1)
        return self.learning_rate * (1 - 0.9 * done)


@dataclass(frozen=True, kw_only=True)
class ClientConfig(_SharedSettings):
    """What a ClientApp reads; ``data`` of the node config takes precedence over that of the run.

    Attributes
    ----------
    local_epochs : int
        Epochs of a local round.
    threads : int
        CPU threads of a local round.
    data_summaries : bool
        Nodes send counts of their new pictures, for the drift test.
    summary_epsilon : float
        Differential privacy of a summary's pictures, delta 1e-5; 0: no noise.
    update_compression : "none" | "float16" | "int8"
        Compress model updates: none, float16 (half the bytes), int8 (a quarter).
    partition_id, num_partitions : int | None
        Which of how many shares of the pictures a simulated node has; None for one with data of
        its own.
    """

    local_epochs: Annotated[int, Field(ge=1), Key(shaping=True)] = 2
    threads: Annotated[int, Field(ge=1), Key()] = 1
    data_summaries: Annotated[bool, Key()] = True
    summary_epsilon: Annotated[float, Field(ge=0, le=1), Key()] = 0.0
    update_compression: Annotated[Literal["none", "float16", "int8"], Key(shaping=True)] = "none"
    partition_id: Annotated[int | None, Field(ge=0)] = None
    num_partitions: Annotated[int | None, Field(ge=1)] = None

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def from_run_config(
        cls, run_config: Mapping[str, Value], node_config: Mapping[str, Value] | None = None
    ) -> Self:
        """Check ``run_config`` and what a node has of its own, and return the settings.

        Raises
        ------
        ConfigError
            One sentence on the first unknown key or wrong value.
        """
        node = node_config or {}
        if "data" in node:
            return _read(cls, {**run_config, "data": node["data"]})
        number, count = node.get("partition-id"), node.get("num-partitions")
        return _read(cls, run_config, partition_id=number, num_partitions=count)


def declared() -> dict[str, Setting]:
    """All settings of the app by their keys, in the order of their records."""
    settings = (*keyed_settings(ServerConfig), *keyed_settings(ClientConfig))
    return {setting.key.name: setting for setting in settings}


def params(run_config: Mapping[str, Value]) -> dict[str, Value]:
    """Return the settings that a run logs, by key; those that lead to a secret are left out."""
    return {
        key: run_config.get(key, setting.key_default)
        for key, setting in declared().items()
        if not setting.key.private
    }


def not_shaping() -> frozenset[str]:
    """The keys of the settings that may change before a session is resumed."""
    return frozenset(key for key, setting in declared().items() if not setting.key.shaping)


def settings_table() -> str:
    """All settings as a Markdown table."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, setting in declared().items():
        meaning, off = setting.meaning.replace("``", "`"), setting.key.off
        if off is not None:
            shown = "empty" if off == "" else f"{off:g}"
            meaning = meaning.replace("None", shown)
            if not setting.optional:
                meaning = f"{meaning.removesuffix('.')}; {shown}: off."
        rows.append(f"| `{key}` | `{json.dumps(setting.key_default)}` | {meaning} |")
    return "\n".join(rows)


def absolute_data(data: str) -> Path:
    """Path of a ``data.yaml``; a relative one would be another folder on every machine.

    Raises
    ------
    ConfigError
        If it is a URL or a relative path.
    """
    if "://" in data:
        raise ConfigError(
            f"data={data!r} is a URL, and nothing is downloaded here; "
            "download the data set yourself and give the absolute path of its data.yaml."
        )
    try:
        path = Path(data).expanduser()
    except RuntimeError:  # ~ of an account that does not exist
        path = Path()
    if not path.is_absolute():
        raise ConfigError(
            f"data={data!r} is a relative path, which Flower's processes would look for in another "
            "folder; give the absolute path of the data.yaml."
        )
    return path


def _read(kind: type[T], run_config: Mapping[str, Value], **given: object) -> T:
    known = declared()
    for key in run_config:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(known)}."
            raise ConfigError(f"Unknown run-config key {key!r}: {hint}")
    try:
        return read_settings(kind, run_config, **given)
    except SettingError as error:
        raise ConfigError(f"Run-config key {error} Change it and run again.") from None


if __name__ == "__main__":
    sys.stdout.write(f"{settings_table()}\n")
