# SPDX-License-Identifier: Apache-2.0
"""Settings: dataclass fields with the run-config key that fills each, and how both are checked.

A part declares its settings in its own record; `fl_app.config` puts the records together.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fl_registry.redaction import printable

Value = bool | float | int | str
"""What Flower's run config and node config can hold."""

T = TypeVar("T")

# The names and the text of a parameter in a NumPy docstring; and a text's first sentence.
_PARAMETER = re.compile(r"^(\w+(?:, \w+)*) : .*\n((?:    .+(?:\n|$))+)", re.MULTILINE)
_SENTENCE = re.compile(r".+?(?:\.(?= [A-Z])|$)")

_WORDS = (
    ("^greater than or equal to (.*)", r"\1 or more"),
    ("^less than or equal to (.*)", r"\1 or less"),
    ("^greater than", "more than"),
    ("^String should have at least 1 character", "a text"),
)


@dataclass(frozen=True)
class Key:
    """The run-config key of a field, for use in ``Annotated``.

    Attributes
    ----------
    name : str
        The key, by default the name of the field with dashes.
    off : bool | float | int | str | None
        The value that stands for None, which a run config cannot hold. If the field cannot be
        None, the whole record is None instead.
    listed : bool
        The value is a text with commas, and the field a tuple.
    private : bool
        The value is a secret, or leads to one: it is never logged.
    shaping : bool
        The value shapes the model: an interrupted session is resumed only with the same one.
    node : bool
        A node may set it for itself, in its node config.
    """

    name: str = ""
    off: Value | None = None
    listed: bool = False
    private: bool = False
    shaping: bool = False
    node: bool = False


class SettingError(ValueError):
    """A field of a settings record has a value of the wrong type or range.

    Parameters
    ----------
    field : str
        Name of the field or of the run-config key.
    value : object
        Its value.
    expected : str
        What was expected instead, to follow the word "expected".
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(printable(f"{field} is {value!r}, expected {expected}."))
        self.expected = expected


class Setting:
    """A field of a settings record.

    Parameters
    ----------
    field : Field
        The dataclass's field.
    hint : type
        Its type, with a `Key` if a run config fills it.
    meaning : str
        The first sentence about it in the docstring of its record.

    Attributes
    ----------
    record : type | None
        The settings record that the field holds, if it holds one.
    optional : bool
        Whether it can be None.
    is_keyed : bool
        Whether a key fills it.
    key : Key
        That key, with its name.
    """

    def __init__(self, field: Field[Any], hint: Any, meaning: str) -> None:
        self.field, self.meaning = field.name, meaning
        self.default: Any = field.default
        plain, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        kinds = get_args(plain) or (plain,)
        self.optional = type(None) in kinds
        self.record: Any = next((kind for kind in kinds if is_dataclass(kind)), None)
        keys = [extra for extra in extras if isinstance(extra, Key)]
        self.is_keyed, key = bool(keys), keys[0] if keys else Key()
        self.key = replace(key, name=key.name or field.name.replace("_", "-"))
        # Strict: a run config has types, so "8" or true in place of 8 is a mistake, not a number.
        strict = ConfigDict(strict=True, allow_inf_nan=False)
        self._adapter = None if self.record else TypeAdapter[Any](hint, config=strict)

    @property
    def key_default(self) -> Value:
        """The default as a run config has it."""
        if self.key.off is not None and (self.default is None or not self.optional):
            return self.key.off
        if self.key.listed:
            return ",".join(self.default)
        value: Value = self.default
        return value

    def check(self, value: object) -> Any:
        """Return the value in the type of the field.

        Raises
        ------
        SettingError
            If it has the wrong type or range.
        """
        if self._adapter is None:
            return value
        try:
            # The parts of a list are texts, which only a lax check turns into the words of an enum.
            return self._adapter.validate_python(value, strict=not self.key.listed)
        except ValidationError as error:
            first = error.errors()[0]
            expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            for pydantics, ours in _WORDS:
                expected = re.sub(pydantics, ours, expected)
            raise SettingError(self.field, value, expected) from None

    def read(self, config: Mapping[str, Value]) -> Any:
        """Return the value of the field in a run config.

        Raises
        ------
        SettingError
            As `check`, with the key in place of the field.
        """
        if self.record is not None:
            keyed = keyed_settings(self.record)
            # A list, so that all values are read: a wrong one is reported even if this is off.
            off = [each.read(config) is None and not each.optional for each in keyed]
            return None if self.optional and any(off) else read_settings(self.record, config)
        raw = config.get(self.key.name, self.key_default)
        if raw == self.key.off and not isinstance(raw, bool):
            return None
        value: object = raw
        if self.key.listed and isinstance(raw, str):
            value = tuple(part.strip() for part in raw.split(",") if part.strip())
        try:
            return self.check(value)
        except SettingError as error:
            none = "" if self.key.off is None else f", or {self.key.off!r}"
            raise SettingError(repr(self.key.name), raw, error.expected + none) from None


@cache
def settings_of(record: Any) -> tuple[Setting, ...]:
    """Return the settings that a record declares, in their order."""
    hints = get_type_hints(record, include_extras=True)
    meanings = {
        name: "".join(_SENTENCE.findall(" ".join(text.split()))[:1])
        for kind in record.__mro__
        for names, text in _PARAMETER.findall(inspect.cleandoc(kind.__doc__ or ""))
        for name in names.split(", ")
    }
    return tuple(
        Setting(field, hints[field.name], meanings.get(field.name, "")) for field in fields(record)
    )


def keyed_settings(record: Any) -> Iterator[Setting]:
    """Return all settings with a key: those of a record and of the records that it holds."""
    for setting in settings_of(record):
        if setting.record is not None:
            yield from keyed_settings(setting.record)
        elif setting.is_keyed:
            yield setting


def check_settings(record: Any) -> None:
    """Check all fields of a settings record; for its ``__post_init__``.

    Raises
    ------
    SettingError
        If a field has the wrong type or range.
    """
    kind: Any = type(record)
    for setting in settings_of(kind):
        setting.check(getattr(record, setting.field))


def read_settings(record: type[T], config: Mapping[str, Value], **given: object) -> T:
    """Return a settings record filled from a run config, and the records that it holds.

    Parameters
    ----------
    record : type
        The record, a dataclass.
    config : Mapping[str, bool | float | int | str]
        The run config; keys that it lacks have their defaults.
    **given : object
        Fields without a key.

    Raises
    ------
    SettingError
        If a value has the wrong type or range.
    """
    kind: Any = record
    read = {
        setting.field: setting.read(config)
        for setting in settings_of(kind)
        if setting.record is not None or setting.is_keyed
    }
    return record(**read, **given)
