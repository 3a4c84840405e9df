# SPDX-License-Identifier: Apache-2.0
"""The settings of the app: the records that its run config fills, read and checked once.

A part that other apps use declares its settings in its own record, such as `Screening`; the
settings of this app alone are declared here. The table in docs/settings.md is made from both by
``python -m fl_app.config``.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field

from fl_app.retraining import DriftSettings, ProbationSettings, RetrainPolicy
from fl_app.settings import (
    Key,
    Setting,
    SettingError,
    Value,
    check_settings,
    keyed_settings,
    read_settings,
    settings_of,
)
from fl_app.strategy import EarlyStopping, Retention, Screening, ShadowEvaluation
from fl_app.strategy.setup import MAX_WAITING_ROUNDS
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.redaction import printable

T = TypeVar("T")


def _device_name(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", name):
        raise ValueError("'auto', 'cpu', 'cuda', 'cuda:1' and so on, or 'mps'")
    return name


DeviceName = Annotated[str, AfterValidator(_device_name)]
Partitioning = Literal["iid", "dirichlet"]

NODE_ONLY_KEYS = ("partition-id", "num-partitions", "data-summaries")
"""Keys of a node config that are no settings: Flower's own, and a folder of the node's summaries.

As a setting of a run, ``data-summaries`` is another thing: whether there are any.
"""

MODEL_STRIDE = 32
"""The largest stride of most heads: picture sizes must be multiples of it."""


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


def _require_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("addresses or networks such as 10.0.0.7,10.1.0.0/16") from None
    return text


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
    trusted_proxies : tuple[str, ...]
        Addresses or networks, with commas, of proxies in front of the API: their
        ``X-Forwarded-For`` tells which client asks.
    token_file : str | None
        File with the API's token; None: ``$FL_APP_API_TOKEN``, else no token.
    """

    port: Annotated[int, Field(ge=0, le=65535), Key("api-port")] = 5001
    host: Annotated[str, Field(min_length=1), Key("api-host")] = "127.0.0.1"
    allowed_hosts: Annotated[tuple[str, ...], Key("api-allowed-hosts", listed=True)] = ()
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_require_network)], ...],
        Key("api-trusted-proxies", listed=True),
    ] = ()
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
    holdout_every : int
        One in so many training pictures is held out for evaluation, where a data set has no ``val``
        and on each node of a simulation.
    seed : int
        Seed of partitions, first weights and local rounds.
    model : str
        Any detector of Ultralytics by name, such as ``yolo11s``, or the absolute path of a model's
        ``.yaml`` on the server.
    image_size : int
        Side of a picture in pixels.
    batch_size : int
        Pictures of a batch, which make an optimizer step.
    """

    home: Annotated[str | None, Key(off="")] = None
    data: Annotated[str | None, Key(off="", shaping=True, node=True)] = None
    partitioning: Annotated[Partitioning, Key(shaping=True)] = "iid"
    alpha: Annotated[float, Field(gt=0), Key(shaping=True)] = 0.5
    holdout_every: Annotated[int, Field(ge=2), Key(shaping=True)] = 10
    seed: Annotated[int, Field(ge=0), Key(shaping=True)] = 42
    model: Annotated[str, Field(min_length=1), Key(shaping=True)] = "yolov8n"
    image_size: Annotated[int, Field(ge=32, multiple_of=MODEL_STRIDE), Key(shaping=True)] = 96
    batch_size: Annotated[int, Field(ge=1), Key(shaping=True, node=True)] = 16


@dataclass(frozen=True, kw_only=True)
class ServerConfig(_SharedSettings):
    """What the ServerApp reads.

    Attributes
    ----------
    num_classes : int | None
        Classes that the server's ``data.yaml`` must have; None: any number.
    num_server_rounds : int
        Rounds of a session.
    min_nodes : int
        Nodes that must be connected before a round starts.
    fraction_train : float
        Share of nodes that train in a round.
    fraction_evaluate : float
        Share of nodes that evaluate in a round; 0: none.
    train_args : str
        Ultralytics' training arguments, such as ``{lr0: 0.01, fliplr: 0}``, or the absolute path of
        a YAML file with them; empty: its defaults with a step for each batch, and for the generated
        shapes arguments of their own.
    ema : float
        Decay of a moving average over the rounds that becomes the global model, such as 0.9; 0: the
        average of the last round alone.
    round_timeout : float
        Seconds to wait for replies; the round continues with those that arrived.
    node_wait_timeout : float
        Seconds to wait for ``min-nodes``; then the run fails.
    server_device : str
        Where the server evaluates: ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``,
        ``cuda``, ``cuda:1``, ``mps``.
    pack_arrays : bool
        Send a model as one array over a SuperLink; hundreds of arrays take seconds.
    max_waiting_rounds : int
        Closed rounds that may wait on disk for a slow MLflow or evaluation; then rounds wait too.
    retention : Retention
        Which old versions are removed at the end of a session.
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
    weights : str | None
        Weights that the first session of a run starts with instead: absolute path of a ``.pt`` of
        Ultralytics or a ``.safetensors`` on the server, or ``version:8``; None: ``restart-from``
        alone decides.
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

    num_classes: Annotated[int | None, Field(ge=1), Key(off=0, shaping=True)] = None
    num_server_rounds: Annotated[int, Field(ge=1), Key()] = 8
    min_nodes: Annotated[int, Field(ge=1), Key(shaping=True)] = 2
    fraction_train: Annotated[float, Field(gt=0, le=1), Key(shaping=True)] = 1.0
    fraction_evaluate: Annotated[float, Field(ge=0, le=1), Key(shaping=True)] = 1.0
    # What it says is compared before a session is resumed, not where it stands.
    train_args: Annotated[str, Key()] = ""
    ema: Annotated[float, Field(ge=0, lt=1), Key(shaping=True)] = 0.0
    round_timeout: Annotated[float, Field(gt=0, allow_inf_nan=True), Key()] = 3600.0
    node_wait_timeout: Annotated[float, Field(gt=0, allow_inf_nan=True), Key()] = 600.0
    max_waiting_rounds: Annotated[int, Field(ge=1), Key()] = MAX_WAITING_ROUNDS
    server_device: Annotated[DeviceName, Key()] = "auto"
    pack_arrays: Annotated[bool, Key()] = True
    retention: Retention
    screening: Screening
    early_stopping: EarlyStopping | None
    metric: Annotated[str, Field(min_length=1), Key(shaping=True)] = "mAP50"
    metric_mode: Annotated[Literal["max", "min"], Key(shaping=True)] = "max"
    policy: PolicySettings
    approval: Annotated[Literal["manual", "auto"], Key()] = "manual"
    shadow: ShadowEvaluation | None
    weights: Annotated[str | None, Key(off="", shaping=True)] = None
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


@dataclass(frozen=True, kw_only=True)
class ClientConfig(_SharedSettings):
    """What a ClientApp reads.

    A node's own config takes precedence over that of the run, for the settings that a node may set.

    Attributes
    ----------
    unknown_classes : "refuse" | "ignore-others"
        A node whose ``data.yaml`` has not the server's names, in any order, takes no part, or
        trains the classes that both have.
    local_epochs : int
        Epochs of a local round.
    keep_optimizer : bool
        A node that trained in the round before continues with its optimizer's state.
    threads : int
        CPU threads of a local round.
    device : str
        Where a node trains: ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda``,
        ``cuda:1``, ``mps``.
    amp : "auto" | "off" | "bf16" | "fp16"
        Mixed precision in training: ``auto`` is ``fp16`` on a CUDA GPU and ``off`` elsewhere.
    workers : int
        Processes that decode and augment pictures in a local round; 0: the training process itself.
    cache : "auto" | "none" | "ram" | "disk"
        Decoded pictures to cache: ``auto`` (up to 128 MiB in memory), ``none``, ``ram`` (all) or
        ``disk`` (all, in ``home``).
    allow_backgrounds : bool
        Train on a node without a single box too, whose pictures are all background then.
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

    unknown_classes: Annotated[Literal["refuse", "ignore-others"], Key(shaping=True)] = "refuse"
    local_epochs: Annotated[int, Field(ge=1), Key(shaping=True)] = 2
    keep_optimizer: Annotated[bool, Key(shaping=True)] = False
    threads: Annotated[int, Field(ge=1), Key(node=True)] = 1
    device: Annotated[DeviceName, Key(node=True)] = "auto"
    amp: Annotated[Literal["auto", "off", "bf16", "fp16"], Key(node=True)] = "auto"
    workers: Annotated[int, Field(ge=0), Key(node=True)] = 0
    cache: Annotated[Literal["auto", "none", "ram", "disk"], Key(node=True)] = "auto"
    allow_backgrounds: Annotated[bool, Key(node=True)] = False
    data_summaries: Annotated[bool, Key()] = True
    summary_epsilon: Annotated[float, Field(ge=0, le=1), Key()] = 0.0
    update_compression: Annotated[Literal["none", "float16", "int8"], Key(shaping=True)] = "none"
    partition_id: Annotated[int | None, Field(ge=0)] = None
    num_partitions: Annotated[int | None, Field(ge=1)] = None

    def __post_init__(self) -> None:
        check_settings(self)
        if (self.partition_id is None) != (self.num_partitions is None):
            raise ConfigError(
                f"Node config has partition-id={self.partition_id} and "
                f"num-partitions={self.num_partitions}, expected both or neither; give both."
            )

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
        own = _own_settings(node)
        # A node with data of its own has all of them.
        share = {} if "data" in own else node
        number, count = share.get("partition-id"), share.get("num-partitions")
        return _read(cls, {**run_config, **own}, partition_id=number, num_partitions=count)


def declared() -> dict[str, Setting]:
    """All settings of the app by their keys, in the order of their records."""
    settings = (*keyed_settings(ServerConfig), *keyed_settings(ClientConfig))
    return {setting.key.name: setting for setting in settings}


def node_keys() -> tuple[str, ...]:
    """The keys of the settings that a node may set for itself."""
    return tuple(key for key, setting in declared().items() if setting.key.node)


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
            raise ConfigError(f"Unknown run-config key {key!r}: {_hint(key, known)}")
    try:
        return read_settings(kind, run_config, **given)
    except SettingError as error:
        raise ConfigError(f"Run-config key {error} Change it and run again.") from None


def _own_settings(node_config: Mapping[str, Value]) -> dict[str, Value]:
    """Check a node config and return the settings in it."""
    mine, known = node_keys(), (*node_keys(), *NODE_ONLY_KEYS)
    readers = {setting.key.name: setting for setting in settings_of(ClientConfig)}
    for key, value in node_config.items():
        if key not in known:
            if key in declared():
                raise ConfigError(
                    f"Node-config key {key!r} is a setting of the whole run, expected one of "
                    f"{sorted(known)}; give it to flwr run with --run-config."
                )
            raise ConfigError(f"Unknown node-config key {key!r}: {_hint(key, known)}")
        if key == "data" and value == "":
            raise ConfigError(
                "Node-config key 'data' is empty, expected the absolute path of a data.yaml; give "
                "it, or leave the key out to use the data of the run."
            )
        if key == "data-summaries":  # a folder
            continue
        try:
            readers[key].read(node_config)
        except SettingError as error:
            advice = "Change it and start the SuperNode again."
            raise ConfigError(f"Node-config key {error} {advice}") from None
    return {key: value for key, value in node_config.items() if key in mine}


def _hint(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {sorted(known)}."


if __name__ == "__main__":
    sys.stdout.write(f"{settings_table()}\n")
