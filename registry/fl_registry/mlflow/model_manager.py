# SPDX-License-Identifier: Apache-2.0
"""`ModelManager`: the model store in MLflow. What it does is in `fl_registry.store`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fl_registry.errors import InvalidName
from fl_registry.home import DEFAULT_MODEL_NAME
from fl_registry.mlflow.backend import MlflowBackend
from fl_registry.mlflow.connection import Connection
from fl_registry.store import ModelStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

_MAX_NAME = 250


class ModelManager(ModelStore):
    """Versions of one registered model in MLflow.

    Making one is instant; MLflow is imported and opened when it is first needed.

    Parameters
    ----------
    tracking_uri : str | None
        MLflow's address: ``http(s)://…``, ``sqlite:///…`` or another database.
        Default: ``$FL_APP_MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the app's home.
    registered_model_name : str
        The registered model; created on the first save.
    home : str | Path | None
        The app's home (see `app_home`).
    experiment_name : str
        The experiment that holds the model files.

    Raises
    ------
    InvalidName
        The model's name cannot be used.
    """

    backend: MlflowBackend

    def __init__(
        self,
        tracking_uri: str | None = None,
        registered_model_name: str = DEFAULT_MODEL_NAME,
        *,
        home: str | Path | None = None,
        experiment_name: str = "fl-app",
    ) -> None:
        self.registered_model_name = _checked_name(registered_model_name)
        connection = Connection(tracking_uri, home)
        super().__init__(
            MlflowBackend(connection, registered_model_name, experiment_name=experiment_name)
        )

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, absolute, with its password if it has one."""
        return self.backend.connection.uri

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client for this address."""
        return self.backend.connection.client


def _checked_name(name: str) -> str:
    text = str(name)
    readable = text.strip() and text.isprintable() and len(text) <= _MAX_NAME
    if not readable or set(text) & set("/:'\"`\\") or text == "." or text.startswith(".."):
        raise InvalidName(
            f"{name!r:.60} cannot be a registered model's name; use 1 to {_MAX_NAME} characters "
            "without slashes, colons, quotes and line breaks."
        )
    return name
