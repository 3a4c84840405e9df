# SPDX-License-Identifier: Apache-2.0
"""The model card of a version: Markdown in Hugging Face's form, made of registry and journal.

Each fact is one that was recorded. What was not recorded is named as unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from pydantic_core import from_json

from fl_app.versions.tags import read_gates, read_node_scores, read_nodes
from fl_app.versions.texts import score_metric
from fl_registry import ModelStore, ModelVersion
from fl_registry.files.artifacts import SPEC_FILE
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.journal.entries import Entry
from fl_registry.numbers import number_text
from fl_registry.redaction import one_line
from fl_registry.serving.mlmodel import MODEL_FILE
from fl_registry.stages import Move

DETECTOR = "ultralytics-detect"
"""The family of models whose weights Ultralytics reads."""
UNKNOWN = "not recorded"
MAX_PARAMS = 200
"""Settings of the training run that are listed."""

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")
_SOURCES = {
    "holdout": "data that the server holds back",
    "clients": "the nodes' own data, averaged over the nodes",
    "training": "the nodes' training data, averaged over the nodes",
}
_INTO_PRODUCTION = (Move.PROMOTE, Move.ROLLBACK, Move.ADOPT)


def model_card(
    store: ModelStore, version_or_stage: str, *, model_name: str = DEFAULT_MODEL_NAME
) -> str:
    """Return the model card of a version.

    Parameters
    ----------
    store : ModelStore
        The registry.
    version_or_stage : str
        A version's number, or a stage, whose newest version it is.
    model_name : str
        The name of the registered model.

    Returns
    -------
    str
        Markdown with YAML front matter. The licence is left to its reader.

    Raises
    ------
    RegistryError
        There is no such version, or registry or journal cannot be read.
    """
    with store.one_reading():
        record, entries = store.named_version(version_or_stage), store.history()
        spec = _spec(store.backend.files.read(record, SPEC_FILE))
        served = store.backend.files.read(record, MODEL_FILE) is not None
        params = store.backend.run_params(record.run_id) if record.run_id else None
    detector = spec.get("model", {}).get("family") == DETECTOR
    sections = {
        "Model": _model(record, spec),
        "Training": _training(record, params),
        "Data": _data(record),
        "Metrics": _metrics(record),
        "Gates": _gates(record),
        "Approval and stages": _moves(record, entries),
        "Use": _use(record.version, model_name, detector=detector, served=served),
        "Licence": ["Not recorded. Fill in `license` above, with the terms of the data."],
    }
    text = [_front_matter(record, model_name, detector=detector)]
    text += [f"# {_plain(model_name)}, version {record.version}", ""]
    text += [_summary(record, model_name)]
    for title, lines in sections.items():
        text += ["", f"## {title}", "", *lines]
    return "\n".join(text) + "\n"


def _front_matter(record: ModelVersion, model_name: str, *, detector: bool) -> str:
    overall = _overall(record.metrics)
    task = {"type": "object-detection" if detector else "other"}
    data = {"name": record.tags.get("score_source") or UNKNOWN, "type": "private"}
    metrics = [{"type": name, "value": value, "name": name} for name, value in overall.items()]
    result = {"task": task, "dataset": data, "metrics": metrics}
    entry = {"name": f"{model_name}-{record.version}", "results": [result] if metrics else []}
    fields: dict[str, Any] = {
        "license": None,
        **({"library_name": "ultralytics", "pipeline_tag": "object-detection"} if detector else {}),
        "tags": ["federated-learning", "flower", "fl-app"],
        "model-index": [entry],
    }
    written = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
    hint = "license:  # to be chosen, such as apache-2.0; also license_name and license_link"
    return f"---\n{written.replace('license: null', hint, 1)}---\n"


def _summary(record: ModelVersion, model_name: str) -> str:
    lead = (
        f"A model that was trained by federated learning with Flower, as version {record.version} "
        f"of {_plain(model_name)}. Its stage is {record.stage}."
    )
    return f"{lead}\n\n{_plain(record.description)}" if record.description else lead


def _model(record: ModelVersion, spec: Mapping[str, Any]) -> list[str]:
    arrays, described = spec.get("arrays", []), spec.get("model", {})
    size = f"{record.size:,} bytes" if record.size else UNKNOWN
    facts = {
        "Saved": f"{record.created:%Y-%m-%d %H:%M:%S} UTC",
        "SHA-256 of the weights": _code(record.sha256),
        "Size": size,
        "Arrays": f"{len(arrays)} with {_numbers(arrays):,} numbers" if arrays else UNKNOWN,
        "Architecture": _plain(described.get("model")),
        "Picture side": f"{described['image_size']} pixels" if "image_size" in described else "",
        "Classes": ", ".join(map(_plain, described.get("names", []))),
    }
    return _facts(facts, optional=("Picture side", "Classes"))


def _training(record: ModelVersion, params: Mapping[str, str] | None) -> list[str]:
    tags = record.tags
    parent = tags.get("parent_version")
    facts = {
        "MLflow run": _code(record.run_id),
        "Flower run": _code(tags.get("flower_run_id")),
        "Session of that run": _plain(tags.get("session")),
        "Round": _plain(tags.get("round")),
        "Parent": f"version {_plain(parent)}" if parent else _no_parent(tags),
        "Reason": _plain(tags.get("trigger")) if tags.get("trigger") else _by_hand(tags),
        "fl-app": _plain(tags.get("app_version")),
    }
    lines = _facts(facts)
    if params is None:
        return [*lines, "", "The settings of the run are not recorded, or were deleted in MLflow."]
    shown = sorted(params.items())[:MAX_PARAMS]
    rows = [(_plain(name), _plain(value, empty="empty")) for name, value in shown]
    more = len(params) - len(shown)
    note = [f"{more} more settings are in MLflow."] if more else []
    return [*lines, "", *_table(("setting", "value"), rows), *note]


def _data(record: ModelVersion) -> list[str]:
    nodes = read_nodes(record.tags)
    if not nodes:
        return ["The nodes and their data are not recorded."]
    rows = [
        (_plain(n["node_id"]), f"{n['num_examples']:,.0f}", _code(n.get("data_digest")))
        for n in nodes
    ]
    total = sum(node["num_examples"] for node in nodes)
    return [
        f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {total:,.0f} examples took "
        "part in its last round. Their data stay where they are.",
        "",
        *_table(("node", "examples", "digest of the data"), rows),
    ]


def _metrics(record: ModelVersion) -> list[str]:
    if not record.metrics:
        return ["No metrics are recorded."]
    overall, decisive = _overall(record.metrics), score_metric(record.as_row())
    source = record.tags.get("score_source", "")
    lines = [
        f"The score that decides is {_plain(decisive)}. It was measured on "
        f"{_SOURCES.get(source, 'data that are not recorded')}.",
        "",
        *_table(("metric", "value"), [(_plain(k), number_text(v)) for k, v in overall.items()]),
    ]
    by_class = _by_class(record.metrics)
    if by_class:
        names = list(dict.fromkeys(name for parts in by_class.values() for name in parts))
        rows = [
            (
                _plain(name),
                *(number_text(parts[name]) if name in parts else "" for parts in by_class.values()),
            )
            for name in names
        ]
        lines += ["", "By class:", "", *_table(("class", *map(_plain, by_class)), rows)]
    else:
        lines += ["", "Metrics by class are not recorded."]
    by_node = read_node_scores(record.tags)
    if not by_node:
        return [*lines, "", "Metrics by node are not recorded."]
    rows = [(_code(key), number_text(value)) for key, value in sorted(by_node.items())]
    head = ("node, by the digest of its data", _plain(decisive))
    return [*lines, "", "By node:", "", *_table(head, rows)]


def _gates(record: ModelVersion) -> list[str]:
    gates = read_gates(record.tags)
    if gates:
        rows = [
            (
                _plain(gate["gate"]),
                "passed" if gate["ok"] else "refused",
                _plain("; ".join(filter(None, (gate["reason"], gate.get("note", ""))))),
            )
            for gate in gates
        ]
        return _table(("gate", "result", "by how much"), rows)
    reason = record.tags.get("reason")
    return [f"Results of gates are not recorded{f', only: {_plain(reason)}' if reason else ''}."]


def _moves(record: ModelVersion, entries: Sequence[Entry]) -> list[str]:
    mine = [e for e in entries if record.version in (e.version, e.displaced)]
    promoted = next((e for e in reversed(mine) if _promotes(e, record.version)), None)
    if promoted is not None:
        who, why = _actor(promoted), _plain(promoted.reason, empty="no reason was given")
        lead = f"{who} put it into Production on {promoted.time[:10]}: {why}."
    elif record.tags.get("approval") == "pending":
        lead = "It waits for approval."
    else:
        lead = "It was never in Production, so nobody has approved it."
    rows = [
        (
            _plain(entry.time[:19].replace("T", " ")),
            _plain(entry.op if entry.version == record.version else f"left for {entry.version}"),
            _actor(entry),
            _plain(entry.reason, empty=""),
        )
        for entry in mine
    ]
    if not rows:
        return [lead, "", "The journal has no entry of this version."]
    return [lead, "", *_table(("time (UTC)", "move", "by", "reason"), rows)]


def _use(version: str, model_name: str, *, detector: bool, served: bool) -> list[str]:
    name = "" if model_name == DEFAULT_MODEL_NAME else f"registered_model_name={model_name!r}"
    lines = [
        "```python",
        "from fl_registry import ModelManager",
        "",
        f"arrays = ModelManager({name}).load_arrays({version!r})",
        "```",
    ]
    option = "" if model_name == DEFAULT_MODEL_NAME else f" --name '{model_name}'"
    if detector:
        lines += [
            *("", "As a file for Ultralytics:", "", "```bash"),
            *(f"fl-app export {version} best.pt{option}", "```"),
        ]
    if served:
        lines += [
            *("", "Served by MLflow:", "", "```bash"),
            *(f"mlflow models serve -m 'models:/{model_name}/{version}'", "```"),
        ]
    return lines


def _promotes(entry: Entry, version: str) -> bool:
    return entry.op in _INTO_PRODUCTION and entry.version == version


def _actor(entry: Entry) -> str:
    if entry.actor == "policy":
        return "The gates (policy)"
    return _plain(entry.actor, empty="Somebody whose name is not recorded")


def _no_parent(tags: Mapping[str, str]) -> str:
    return "none: it began with new or given weights" if "parent_version" in tags else UNKNOWN


def _by_hand(tags: Mapping[str, str]) -> str:
    return "a person started the run" if "trigger" in tags else UNKNOWN


def _overall(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that are not those of a class."""
    return {name: value for name, value in metrics.items() if not _is_of_class(name, metrics)}


def _by_class(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the metrics of classes: by metric, then by class."""
    parts: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if _is_of_class(name, metrics):
            metric, _, part = name.partition("/")
            parts.setdefault(metric, {})[part] = value
    return parts


def _is_of_class(name: str, metrics: Mapping[str, float]) -> bool:
    metric, slash, _ = name.partition("/")
    return bool(slash) and metric in metrics


def _spec(content: bytes | None) -> dict[str, Any]:
    """Return the description of a version's arrays; empty where it is missing or unreadable."""
    try:
        spec = from_json(content or b"{}")
        found = {"arrays": list(spec.get("arrays", [])), "model": dict(spec.get("model", {}))}
        _numbers(found["arrays"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def _numbers(arrays: Iterable[Mapping[str, Any]]) -> int:
    total = 0
    for array in arrays:
        count = 1
        for length in array["shape"]:
            count *= int(length)
        total += count
    return total


def _facts(facts: Mapping[str, str], *, optional: Sequence[str] = ()) -> list[str]:
    return [
        f"- **{name}**: {value or UNKNOWN}"
        for name, value in facts.items()
        if value or name not in optional
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(text: object, *, empty: str = UNKNOWN) -> str:
    """Return a text of others as one line of Markdown that means nothing but itself."""
    return _MARKS.sub(r"\\\1", one_line(text, 2000)) if text not in (None, "") else empty


def _code(text: object) -> str:
    return f"`{one_line(text).replace('`', '')}`".replace("|", "\\|") if text else UNKNOWN
