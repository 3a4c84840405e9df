# SPDX-License-Identifier: Apache-2.0
"""The API's route for an operator's reports on the model in production, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from flask import Flask, Response, g

from fl_app.api.idempotency import Answer, Once
from fl_app.api.inputs import ApiError, checked_fields, is_number
from fl_app.api.versions import Versions, version_number
from fl_app.retraining.probation.probation import Probation
from fl_app.retraining.probation.state import NUMBERS, ProductionReport

MAX_METRICS = 100
"""Further numbers of a report."""
MAX_METRIC_NAME = 200


def add_production_routes(app: Flask, probation: Probation, versions: Versions, once: Once) -> None:
    """Add ``POST /production_metrics``."""

    @app.post("/production_metrics")
    def production_metrics() -> Response:
        report = _report(g.body)

        def work(new_id: str) -> Answer:
            with versions.asked():
                return 200, asdict(probation.report(replace(report, id=new_id)))

        return once(work)


def probation_status(
    probation: Probation | None, versions: Versions | None
) -> dict[str, Any] | None:
    """Return where the version in production stands; None where that is not known just now."""
    if probation is None or versions is None:
        return None
    try:
        with versions.asked():
            return probation.status()
    except ApiError:
        return None


def _report(body: Mapping[str, Any]) -> ProductionReport:
    """Read a report.

    Raises
    ------
    ApiError
        400 for anything that is not one, 404 for a version that is no number.
    """
    kinds = dict.fromkeys(NUMBERS, float) | {"metrics": dict, "predictions": object, "version": str}
    checked_fields(body, **kinds)
    if not set(body) - {"version"}:
        raise ApiError(400, "There is nothing in the report; send at least one number.")
    accuracy, latency, throughput = (_number(body, name) for name in NUMBERS)
    try:
        return ProductionReport(
            accuracy,
            latency,
            throughput,
            metrics=_metrics(body.get("metrics", {})),
            predictions=body.get("predictions"),
            version=version_number(body["version"]) if "version" in body else None,
        )
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def _number(body: Mapping[str, Any], name: str) -> float | None:
    return float(body[name]) if name in body else None


def _metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    if len(metrics) > MAX_METRICS:
        raise ApiError(
            400, f"The field 'metrics' has {len(metrics)} numbers; at most {MAX_METRICS} are taken."
        )
    for name, value in metrics.items():
        if len(name) > MAX_METRIC_NAME:
            raise ApiError(400, f"A metric's name has at most {MAX_METRIC_NAME} characters.")
        if not is_number(value):
            raise ApiError(400, f"The metric {name[:80]!r} must be a number.")
    return {name: float(value) for name, value in metrics.items()}
