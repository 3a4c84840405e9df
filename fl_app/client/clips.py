# SPDX-License-Identifier: Apache-2.0
"""Which pictures belong to one clip or site, and a holdout that has whole clips only.

Two frames of a clip are nearly the same picture, so a score on one of them says little after
training on the other. Nothing here reads pictures.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fl_models.pictures import SUFFIXES

# Roboflow appends the suffix of the source and a hash to its name, once for each augmented copy.
_ROBOFLOW = re.compile(
    r"(?P<clip>.+?)(?:_(?:jpe?g|png|bmp|webp|tiff?|heic))?\.rf\.[0-9A-Za-z]+", re.I
)
_FRAME = re.compile(
    r"(?P<clip>.*?)[-_. ]*(?:frames?|frm)[-_. ]*\d+"
    r"|(?P<video>.+_(?:mp4|mov|avi|mkv|m4v|webm|wmv|mpe?g))[-_]\d+"
    r"|(?P<numbered>(?:.*[-_. ])?(?:clip|video|vid|seq|sequence|scene)[-_ ]?[^-_. ]*)[-_. ]+\d+",
    re.IGNORECASE,
)
GROUP_FILES = ("groups.csv", "groups.txt")
"""Names of a file beside the data.yaml that says which pictures belong together."""


class GroupsError(ValueError):
    """A groups file can't be used; the text is one sentence with the reason."""


def clip_of(picture: Path) -> str:
    """Return the clip that a picture's name says it is of; the picture itself if it says nothing.

    ``clip3_frame0012.jpg``, ``video1_mp4-12_jpg.rf.HASH.jpg`` and ``scene2_0012.png`` are of the
    clips before their numbers, Roboflow's copies ``dog_jpg.rf.HASH.jpg`` are of one picture, and
    ``frame_0012.png`` is of its folder.
    """
    name = picture.stem
    copy = _ROBOFLOW.fullmatch(name)
    if copy:
        name = copy["clip"]
    frame = _FRAME.fullmatch(name)
    if frame:
        name = frame["clip"] or frame["video"] or frame["numbered"] or ""
    return f"{picture.parent}/{name}" if copy or frame else str(picture)


def read_groups(file: Path, text: str, root: Path) -> dict[str, str]:
    """Return the group of each picture that a file lists, by absolute path and by file name.

    A row has a picture and its group, with a comma, semicolon or tab between them (or a space, if
    the file has none of these). The first row may be a heading.

    Raises
    ------
    GroupsError
        A row has no group.
    """
    rows = [row for row in text.splitlines() if row.strip()]
    between = next((mark for mark in ",;\t" if any(mark in row for row in rows)), " ")
    pairs = list[tuple[str, str]]()
    for number, row in enumerate(csv.reader(rows, delimiter=between, skipinitialspace=True)):
        cells = [cell.strip() for cell in row if cell.strip()]
        if len(cells) < 2:
            raise GroupsError(
                f"row {number + 1} of {file} has {len(cells)} columns, expected a picture and its "
                "group"
            )
        if number or Path(cells[0]).suffix.lower() in SUFFIXES:
            pairs.append((cells[0], cells[1]))
    return named_groups(file, pairs, root)


def named_groups(file: Path, pairs: Iterable[tuple[str, str]], root: Path) -> dict[str, str]:
    """Return the group of each picture, as `read_groups` does, from pairs of them."""
    groups: dict[str, str] = {}
    for picture, group in pairs:
        path = Path(picture.replace("\\", "/"))
        groups[str(root / path)] = groups[path.name] = f"{file}: {group}"
    return groups


def clips_of(pictures: Sequence[Path], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return the clip of each picture: as listed in ``groups``, else as its name says."""
    return tuple(
        groups.get(str(path)) or groups.get(path.name) or clip_of(path) for path in pictures
    )


def known_clips(pictures: Sequence[Path], groups: Mapping[str, str]) -> tuple[str, ...]:
    """Return the clip of each picture; empty if neither ``groups`` nor a name says any.

    Empty as well if all are of one clip, from which other clips cannot be told.
    """
    clips = clips_of(pictures, groups)
    several = 1 < len(set(clips)) < len(clips)
    return clips if several or (len(clips) > 1 and {*clips} <= {*groups.values()}) else ()


def by_clip(clips: Sequence[str]) -> list[list[int]]:
    """Return the indices of each clip's pictures, in the order of their first pictures."""
    members: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        members.setdefault(clip, []).append(index)
    return list(members.values())


def held_out(clips: Sequence[str], every: int) -> list[int]:
    """Return the indices of the pictures to hold out: every n-th, and whole clips only.

    A clip is held out when fewer than one in ``every`` pictures before it are, unless it is larger
    than the whole holdout should be; if all are, the smallest one is. Of a single clip, the last
    pictures are held out.
    """
    members, wanted = by_clip(clips), -(-len(clips) // every)
    if len(members) == 1:
        return members[0][-wanted:]
    chosen, seen = list[int](), 0
    for clip in members:
        if len(chosen) * every <= seen and len(chosen) + len(clip) <= wanted:
            chosen += clip
        seen += len(clip)
    if not chosen:
        chosen = min(members, key=len)
    return sorted(chosen)
