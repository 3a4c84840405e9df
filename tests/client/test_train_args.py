# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which training arguments a federation takes, and what it says of the others."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.utils import DEFAULT_CFG_DICT, LOGGER

from fl_app.client.generated_shapes import TRAIN_ARGS
from fl_app.client.train_args import NAMES, TrainArgsError, read_train_args
from fl_app.config import ServerConfig, not_shaping
from fl_app.yolo import train_order, train_params

DEFAULTS = {name: DEFAULT_CFG_DICT[name] for name in NAMES} | {"nbs": None}


def test_the_page_on_training_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    table = page.split("| what | arguments |")[1].split("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(NAMES)


@pytest.mark.parametrize("text", ["", "  ", "{}", "# nothing: yet"])
def test_without_arguments_they_are_ultralytics_own_but_for_nbs(text: str) -> None:
    assert read_train_args(text) == DEFAULTS


@pytest.mark.parametrize(
    "text",
    [
        "{lr0: 0.02, fliplr: 0, freeze: [0, 1]}",
        '{"lr0": 0.02, "fliplr": 0, "freeze": [0, 1]}',
        "lr0: 0.02\nfliplr: 0\nfreeze: [0, 1]\n",
    ],
)
def test_arguments_come_as_text_or_in_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text(text)
    expected = {**DEFAULTS, "lr0": 0.02, "fliplr": 0, "freeze": [0, 1]}
    assert read_train_args(text) == read_train_args(str(path)) == expected


def test_what_a_server_sends_is_read_by_a_node_as_it_is() -> None:
    values = read_train_args("{optimizer: SGD, cos_lr: true, scale: [0.5, 1.5]}")
    assert read_train_args(json.dumps(values)) == values


def test_the_file_of_an_ultralytics_run_is_refused_for_what_the_app_sets_alone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "args.yaml"
    ran = {**vars(get_cfg()), "lr0": 0.02, "model": "yolov8n.pt", "data": "a.yaml", "plots": False}
    path.write_text(yaml.safe_dump({**ran, "save_dir": "runs/detect/train"}))
    with pytest.raises(TrainArgsError) as refused:
        read_train_args(str(path))
    sentence = str(refused.value)
    assert "epochs (set num-server-rounds and local-epochs instead)" in sentence
    assert "plots (not used in a federation)" in sentence
    assert "save_dir (not used in a federation)" in sentence
    assert "mask_ratio" not in sentence  # as Ultralytics has it, and without a meaning here
    named = [key for key in ran if f"{key} (" in sentence]
    left = {key: value for key, value in ran.items() if key not in named}
    assert read_train_args(json.dumps(left))["lr0"] == 0.02


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{lr: 0.1}", "'lr' is not a valid YOLO argument. Similar arguments are i.e. .*lr0"),
        ("{mosaik: 0.1}", "mosaic"),
        ("{epochs: 100}", "epochs .set num-server-rounds and local-epochs instead."),
        ("{batch: 4, imgsz: 64}", "batch .set batch-size instead., imgsz .set image-size instead."),
        ("{label_smoothing: 0.1}", "label_smoothing .not used"),
        ("{copy_paste: 0.1}", "copy_paste .not used"),
        ("{fliplr: 2}", "fliplr=2"),
        ("{lr0: fast}", "lr0=fast"),
        ("{lr0: 1e-3}", "YAML reads 1e-3 as a text, write 0.001"),
        ("{lr0: null}", "lr0"),
        ("{optimizer: Lion}", "optimizer is 'Lion', expected one of .*AdamW"),
        ("{freeze: [a]}", "freeze is .* the number of first layers or a list"),
        ("[1, 2]: x: y", "no YAML"),
        ("- lr0: 0.1", "expected arguments by name"),
        ("lr0=0.1", "cannot be read .* such as '{lr0: 0.01, fliplr: 0}'"),
        ("args.yaml", "the path is not absolute"),
        ("/nowhere/args.yaml", "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    text: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    level = LOGGER.level
    with caplog.at_level(logging.INFO), pytest.raises(TrainArgsError, match=words) as refused:
        read_train_args(text)
    assert "\n" not in str(refused.value)
    assert caplog.records == []  # Ultralytics' page on its command line among them
    assert LOGGER.level == level


def test_a_run_logs_and_sends_what_they_say_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "args.yaml"
    path.write_text("lr0: 0.02\nfreeze: [0, 1]\n")
    inline, filed = (
        ServerConfig.from_run_config({"train-args": text, "data": "/any/data.yaml"})
        for text in ("{lr0: 0.02, freeze: [0, 1]}", str(path))
    )
    assert train_order(inline) == train_order(filed)
    assert train_params(inline) == train_params(filed)
    assert train_params(inline).keys() == {f"train-args.{name}" for name in NAMES}
    assert train_params(inline)["train-args.lr0"] == "0.02"
    assert train_params(inline)["train-args.freeze"] == "[0, 1]"
    # What they say is compared before a session is resumed, not the text of the setting.
    assert "train-args" in not_shaping()
    assert not train_params(inline).keys() & not_shaping()


def test_the_generated_shapes_have_arguments_of_their_own_unless_others_are_given() -> None:
    def rate(**given: str) -> str:
        config = ServerConfig.from_run_config(
            {key.replace("_", "-"): v for key, v in given.items()}
        )
        return train_params(config)["train-args.lr0"]

    assert rate() == str(read_train_args(TRAIN_ARGS)["lr0"]) != str(DEFAULTS["lr0"])
    assert rate(data="/any/data.yaml") == str(DEFAULTS["lr0"])
    assert rate(train_args="{lr0: 0.3}") == "0.3"


def test_arguments_that_cannot_be_used_end_a_run_before_its_first_round() -> None:
    with pytest.raises(TrainArgsError, match="'lr' is not a valid YOLO argument"):
        train_order(ServerConfig.from_run_config({"train-args": "{lr: 0.1}"}))
