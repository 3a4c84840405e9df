# SPDX-License-Identifier: Apache-2.0
"""The SuperNodes' data: the user's own data sets, checked, or shares of the generated pictures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from fl_app.client.data import DataError, generated_data, load_data_spec, partition, split_holdout
from fl_app.client.generated_shapes import NAMES
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout
from fl_models.pictures import DataSpec, label_file
from fl_registry.files.atomic import new_folder

SEED = 42


def data_file(path: str) -> str:
    """Return the absolute path of a ``data.yaml``, given itself or its folder.

    Raises
    ------
    DeploymentError
        The path cannot be written into a SuperNode's settings.
    """
    absolute = Path(path).expanduser().absolute()
    file = absolute / "data.yaml" if absolute.is_dir() else absolute
    if not str(file).isprintable() or set(str(file)) & set("\"'\\="):
        raise DeploymentError(
            f"{path!r} holds a quote, a backslash, = or a control character, with which a "
            "SuperNode's settings cannot be written; rename the folder."
        )
    return str(file)


def check_data(files: Sequence[str]) -> tuple[str, ...]:
    """Check that data sets can be used together, and return the names of their classes.

    Parameters
    ----------
    files : Sequence[str]
        Absolute path of each ``data.yaml``; at least one.

    Raises
    ------
    DeploymentError
        One cannot be used, or has other classes than the first.
    """
    try:
        specs = [load_data_spec(file, None) for file in files]
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    for file, spec in zip(files, specs, strict=True):
        if spec.names != specs[0].names:
            raise DeploymentError(
                f"{file} has the classes {', '.join(spec.names)}, and {files[0]} has "
                f"{', '.join(specs[0].names)}; all nodes of a federation need the same ones, in "
                "the same order."
            )
    return specs[0].names


def generated_shares(layout: Layout, nodes: int) -> list[str]:
    """Return a ``data.yaml`` for each node, with its share of the generated pictures.

    A share is written once, into the node's own folder. Another number of nodes gets new shares.

    Raises
    ------
    DeploymentError
        The disk is full, or there are more nodes than pictures.
    """
    folders = [
        layout.node(number) / f"shapes-{number}-of-{nodes}" for number in range(1, nodes + 1)
    ]
    try:
        if not all(folder.is_dir() for folder in folders):
            spec = generated_data(layout.home, len(NAMES))
            for index, folder in enumerate(folders):
                if not folder.is_dir():
                    _write_share(spec, folder, index, nodes)
    except DataError as error:
        raise DeploymentError(f"{error}.") from error
    except OSError as error:
        raise DeploymentError(
            f"The nodes' pictures cannot be written below {layout.folder} "
            f"({error.strerror or error}); free space there, or name another folder with --folder."
        ) from error
    return [str(folder / "data.yaml") for folder in folders]


def _write_share(spec: DataSpec, folder: Path, index: int, nodes: int) -> None:
    share = partition(spec, num_partitions=nodes, partition_id=index, kind="iid", seed=SEED)
    train, val = split_holdout(share)
    with new_folder(folder) as draft:
        for split, pictures in {"train": train, "val": val}.items():
            images, labels = draft / "images" / split, draft / "labels" / split
            images.mkdir(parents=True)
            labels.mkdir(parents=True)
            for picture in pictures:
                shutil.copyfile(picture, images / picture.name)
                if (label := label_file(picture)).is_file():
                    shutil.copyfile(label, labels / label.name)
        content = {"train": "images/train", "val": "images/val", "names": list(spec.names)}
        (draft / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
