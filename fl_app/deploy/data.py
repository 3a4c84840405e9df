# SPDX-License-Identifier: Apache-2.0
"""The SuperNodes' data: those that were named, checked, or shares of the generated pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from fl_app.client.data import (
    DataError,
    DataSpec,
    generated_data,
    load_data_spec,
    partition,
    split_holdout,
)
from fl_app.client.generated_shapes import NAMES
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_models.pictures import label_file
from fl_registry.files.atomic import new_folder

SEED = 42


def data_file(given: str) -> str:
    """Return the absolute path of a ``data.yaml`` that was given by itself or by its folder.

    Raises
    ------
    DeploymentError
        The path cannot be handed to a SuperNode.
    """
    path = Path(given).expanduser().absolute()
    file = path / "data.yaml" if path.is_dir() else path
    if not str(file).isprintable() or set(str(file)) & set("\"'\\="):
        raise DeploymentError(
            f"{given!r} holds a quote, a backslash, = or a control character, with which a "
            "SuperNode's settings cannot be written; rename the folder."
        )
    return str(file)


def checked(files: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes of data sets, which all must have.

    Raises
    ------
    DeploymentError
        One cannot be used, or has other classes than the first.
    """
    try:
        found = [load_data_spec(file, None) for file in files]
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    for file, spec in zip(files, found, strict=True):
        if spec.names != found[0].names:
            raise DeploymentError(
                f"{file} has the classes {', '.join(spec.names)}, and {files[0]} has "
                f"{', '.join(found[0].names)}; all nodes of a federation need the same ones, in "
                "the same order."
            )
    return found[0].names


def generated_shares(layout: Layout, nodes: int) -> list[str]:
    """Return a ``data.yaml`` for each node, with its share of the generated pictures.

    A share is written once, into the node's own folder; another number of nodes divides anew.

    Raises
    ------
    DeploymentError
        There is no room, or there are more nodes than pictures.
    """
    folders = [
        layout.node(number) / f"shapes-{number}-of-{nodes}" for number in range(1, nodes + 1)
    ]
    try:
        missing = [(i, folder) for i, folder in enumerate(folders) if not folder.is_dir()]
        spec = generated_data(layout.home, len(NAMES)) if missing else None
        for index, folder in missing:
            if spec is not None:
                _write_share(spec, folder, index, nodes)
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    except OSError as error:
        raise DeploymentError(
            f"The nodes' pictures cannot be written below {layout.folder} "
            f"({error.strerror or error}); make room there, or name another folder with --folder."
        ) from error
    return [str(folder / "data.yaml") for folder in folders]


def _write_share(spec: DataSpec, folder: Path, index: int, nodes: int) -> None:
    share = partition(spec, num_partitions=nodes, partition_id=index, kind="iid", seed=SEED)
    train, val = split_holdout(share)
    with new_folder(folder) as draft:
        for split, pictures in {"train": train, "val": val}.items():
            _copy(pictures, draft / "images" / split, draft / "labels" / split)
        content = {"train": "images/train", "val": "images/val", "names": list(spec.names)}
        (draft / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")


def _copy(pictures: Iterable[Path], images: Path, labels: Path) -> None:
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    for picture in pictures:
        shutil.copyfile(picture, images / picture.name)
        label = label_file(picture)
        if label.is_file():
            shutil.copyfile(label, labels / label.name)
