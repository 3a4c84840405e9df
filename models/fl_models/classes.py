# SPDX-License-Identifier: Apache-2.0
"""Class names: which class number of a data set is which class of a model, by name."""

from __future__ import annotations

import difflib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

IGNORED = -1
"""The number of a class that a model does not have; its boxes are left out."""
_SHOWN = 3  # on each side: the reason of a rejected node has 200 characters


class ClassError(ValueError):
    """Class names do not fit together; the text names those that differ."""


def match_names(
    own: Sequence[str], model: Sequence[str], *, ignore_others: bool = False
) -> tuple[int, ...]:
    """Return for each of ``own`` its number in ``model``.

    Names are compared exactly.

    Parameters
    ----------
    own : Sequence[str]
        Names of the data set by class number.
    model : Sequence[str]
        Names of the model by class number.
    ignore_others : bool
        Accept names that only one of the two has; a class that the model lacks is `IGNORED`.

    Raises
    ------
    ClassError
        The names differ, or have nothing in common if ``ignore_others``.
    """
    differs = name_differences(own, model)
    if differs and not (ignore_others and set(own) & set(model)):
        raise ClassError(differs)
    place = {name: number for number, name in enumerate(model)}
    return tuple(place.get(name, IGNORED) for name in own)


def name_differences(own: Sequence[str], model: Sequence[str]) -> str:
    """Return which names only one of the two has, with near misses; empty if none, in any order."""
    unknown = [name for name in own if name not in set(model)]
    missing = [name for name in model if name not in set(own)]
    texts = {
        "it has": [_hinted(name, missing) for name in unknown],
        "it lacks": [*map(repr, missing)],
    }
    return " and ".join(f"{what} {_listed(some)}" for what, some in texts.items() if some)


def near_name(name: str, known: Sequence[str]) -> str | None:
    """Return the name that was probably meant, if there is one; case and spaces do not count."""
    plain = {_plain(each): each for each in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=0.75)
    return plain[near[0]] if near else None


def class_names(description: Mapping[str, object]) -> tuple[str, ...]:
    """Return the class names in the description of a model, by class number; empty if unknown."""
    names = description.get("names")
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


def repeated_names(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def listed(names: Sequence[str]) -> str:
    """Return names for a sentence, at most three of them."""
    return _listed([repr(name) for name in names])


def _hinted(name: str, known: Sequence[str]) -> str:
    near = near_name(name, known)
    if near is None:
        return repr(name)
    # Accents and letters of full width have several codes, which look the same.
    shown = ascii if _form(near) == _form(name) else repr
    return f"{shown(name)} (did you mean {shown(near)}?)"


def _form(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _plain(name: str) -> str:
    return "".join(_form(name).casefold().replace("_", " ").replace("-", " ").split())
