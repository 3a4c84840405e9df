# SPDX-License-Identifier: Apache-2.0
"""Options that commands of `fl-app` share, so that each is called and explained alike."""

from __future__ import annotations

from typing import Annotated

import typer

Uri = Annotated[
    str,
    typer.Option(
        "--tracking-uri",
        help="MLflow to use; default: FL_APP_MLFLOW_TRACKING_URI, else SQLite in FL_APP_HOME.",
    ),
]
Name = Annotated[str, typer.Option("--name", help="Name in the model registry.")]
By = Annotated[str, typer.Option("--by", help="Who decides; default: the account's name.")]
Note = Annotated[str, typer.Option("--note", help="Why; kept with the decision.")]
Monitor = Annotated[
    str, typer.Option("--monitor", help="SQLAlchemy URL of the monitor's memory; default: SQLite.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
DEFAULT_NAME = "fl-global-model"
