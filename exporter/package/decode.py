"""JSON to frozen records, with errors that name the field. The schema is in the records alone."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
PLACE = re.compile(r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<where>.*)`$", re.DOTALL)


def decode(kind: type[T], text: bytes) -> T:
    """A record from JSON text; raises ValueError that names the field and what is wrong.

    Keys that the record does not know are left out; those that are absent get their defaults.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(_worded(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse(kind: type[T], raw: Any) -> T:
    """A record from parsed JSON, as ``decode``."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.MsgspecError as error:
        raise ValueError(_worded(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _worded(error: Exception) -> str:
    """``Expected `int`, got `str` - at `$.a[0].b` `` as ``a[0].b: expected int, got str``."""
    found = PLACE.match(str(error))
    what, where = (found["what"], found["where"]) if found else (str(error), "")
    what = (what[:1].lower() + what[1:] if not what.startswith("JSON") else what).replace("`", "")
    return f"{where}: {what}" if where else what
