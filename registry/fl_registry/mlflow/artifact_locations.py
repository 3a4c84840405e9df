# SPDX-License-Identifier: Apache-2.0
"""Which locations of files may be opened. Pure.

What MLflow returns may have been written by anybody. A location is opened only if it is a folder
of the logged model that names it, on this machine or in an object store, and never at an address
that could be any server's.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

from fl_registry.errors import ArtifactError
from fl_registry.redaction import one_line

_MODEL_ID = re.compile(r"m-[0-9A-Za-z]{8,64}")
LOCAL_SCHEMES = ("", "file")
_STORES = frozenset({"s3", "r2", "b2", "gs", "abfss", "wasbs", "hdfs", "viewfs", "dbfs"})
_NO_HOST = ("dbfs", "hdfs", "viewfs")
_PROXY = "mlflow-artifacts"


def is_model_id(text: str) -> bool:
    """Return whether a text can be MLflow's id of a logged model."""
    return _MODEL_ID.fullmatch(text) is not None


def checked_location(location: str, model_id: str, *, tracking_uri: str) -> str:
    """Return the location of a logged model's files, if it may be opened.

    Parameters
    ----------
    location : str
        The location, as MLflow has it.
    model_id : str
        The logged model whose files these are; a part of the path must be called so.
    tracking_uri : str
        MLflow's address; ``mlflow-artifacts`` may name no other server.

    Raises
    ------
    ArtifactError
        It may not.
    """
    try:
        parts = urlsplit(location)
        path = unquote(parts.path)
    except ValueError:
        raise _refused(location, model_id) from None
    folders = path.split("/")
    own = is_model_id(model_id) and model_id in folders and ".." not in folders
    printable = location.isprintable() and path.isprintable()  # urlsplit leaves line breaks out
    if not own or not printable or parts.query or parts.fragment:
        raise _refused(location, model_id)
    if parts.scheme in LOCAL_SCHEMES:
        good = parts.netloc in ("", "localhost") and path.startswith("/")
    elif parts.scheme == _PROXY:
        good = parts.netloc in ("", urlsplit(tracking_uri).netloc.rpartition("@")[2])
    else:
        good = parts.scheme in _STORES and bool(parts.netloc or parts.scheme in _NO_HOST)
    if not good:
        raise _refused(location, model_id)
    return location


def _refused(location: str, model_id: str) -> ArtifactError:
    return ArtifactError(
        f"{one_line(location, 80)} is not a folder of the logged model {one_line(model_id, 80)}, "
        "on this machine or in an object store, so it is not opened; save the version's file again "
        "with save_model_version."
    )
