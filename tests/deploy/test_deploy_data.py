# SPDX-License-Identifier: Apache-2.0
"""The SuperNodes' data: shares of the generated pictures, or the user's own data sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_app.client.data_yaml import DataError, load_data_spec
from fl_app.client.generated_shapes import NAMES, shapes_data
from fl_app.deploy.errors import DeploymentError
from fl_app.deploy.folder import Layout, check_data, data_file, generated_shares


def test_each_node_has_a_share_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    files = generated_shares(layout, 3)
    shares = [load_data_spec(file, len(NAMES)) for file in files]
    assert check_data(files)
    named = [{picture.name for picture in (*share.train, *share.val)} for share in shares]
    assert sum(map(len, named)) == len(set().union(*named)) == 512
    for number, share in enumerate(shares, start=1):
        assert all(layout.node(number) in path.parents for path in (*share.train, *share.val))
        assert not set(share.train) & set(share.val)
    first = Path(files[0]).stat().st_mtime_ns
    assert generated_shares(layout, 3) == files
    assert Path(files[0]).stat().st_mtime_ns == first
    assert not set(generated_shares(layout, 2)) & set(files)


def test_a_data_set_is_named_by_file_or_folder(tmp_path: Path) -> None:
    file = shapes_data(tmp_path, train=4, val=2)
    assert data_file(str(file)) == data_file(str(file.parent)) == str(file)
    assert check_data([str(file)])


@pytest.mark.parametrize("name", ['a"b', "a'b", "a\\b", "a=b", "a\nb"])
def test_a_path_that_cannot_be_written_into_node_settings_is_refused(name: str) -> None:
    with pytest.raises(DeploymentError, match="rename the folder"):
        data_file(f"/data/{name}/data.yaml")


def test_data_that_cannot_be_used_are_reported_with_their_path(tmp_path: Path) -> None:
    good = str(shapes_data(tmp_path, train=4, val=2))
    with pytest.raises(DeploymentError, match=r"nothing/data\.yaml can't be read"):
        check_data([good, str(tmp_path / "nothing" / "data.yaml")])


def test_nodes_with_other_classes_are_refused(tmp_path: Path) -> None:
    first = shapes_data(tmp_path / "1", train=4, val=2)
    second = shapes_data(tmp_path / "2", train=4, val=2)
    second.write_text(second.read_text().replace("circle", "disc"))
    assert not check_data([str(first), str(second)])  # the run ignores one, and is told so
    second.write_text(second.read_text().replace("star", "stars"))
    with pytest.raises(DeploymentError, match=r"it has 'disc', 'stars' \(did you mean 'star'\?\)"):
        check_data([str(first), str(second)])
    second.write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    with pytest.raises(DeploymentError, match="it has 'cat', 'dog' and it lacks 'circle'"):
        check_data([str(first), str(second)])


def test_nodes_may_list_their_classes_in_another_order(tmp_path: Path) -> None:
    first = shapes_data(tmp_path / "1", train=4, val=2)
    second = shapes_data(tmp_path / "2", train=4, val=2)
    names = ", ".join(reversed(NAMES))
    second.write_text(f"train: images/train\nval: images/val\nnames: [{names}]\n")
    assert check_data([str(first), str(second)])


def test_a_node_still_checks_its_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected 3"):
        load_data_spec(shapes_data(tmp_path, train=4, val=2), 3)
