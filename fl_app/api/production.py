# SPDX-License-Identifier: Apache-2.0
"""The API's route for reports on the model in production, and the state of its probation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fl_app.api.endpoint import Change, Context, Post
from fl_app.api.idempotency import Answer
from fl_app.api.parsing import ApiError
from fl_app.api.schemas import ReportBody
from fl_app.retraining.probation.probation import Probation
from fl_app.retraining.probation.reports import ProductionReport, ReportAnswer


def production_metrics(api: Context, body: ReportBody, change: Change) -> Answer:
    """Report how the model in Production does; a critical fall brings the last good one back.

    The numbers go to the MLflow run of that version, as production/accuracy and so on.
    """
    if not body.keys() - {"version"}:
        raise ApiError(400, "There is nothing in the report; send at least one number.")
    try:
        report = ProductionReport(**body, id=change.id)
    except ValueError as error:  # of the name of a metric
        raise ApiError(400, str(error)) from error
    with api.registry.call():
        return 200, asdict(_probation(api).report(report))


def probation_status(api: Context) -> dict[str, Any] | None:
    """Return the probation of the version in production; None where it is not known just now."""
    try:
        with api.registry.call():
            return _probation(api).status()
    except ApiError:
        return None


def _probation(api: Context) -> Probation:
    if api.probation is None:
        raise ApiError(404, "This server watches no version in production.")
    return api.probation


PRODUCTION_ENDPOINTS = (Post("/production_metrics", ReportAnswer, ReportBody, production_metrics),)
