"""Scalars that fields of `Model` and `ModelPool` are made of: names, numbers, durations, quantities, with their bounds.

Below `fields` on the path of a reconcile. Each says the same to pydantic and, by its JSON schema, to the API server.
"""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, Strict, StringConstraints, WithJsonSchema

# Patterns spell their characters out: \w and \d mean ASCII to the API server and all of Unicode to pydantic.
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
OBJECT_NAME_PATTERN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
DECIMAL_PATTERN = r"^[0-9]{1,3}([.][0-9]{1,6})?$"
CPU_PATTERN = r"^([0-9]{1,7}m|[0-9]{1,4}([.][0-9]{1,3})?)$"
MEMORY_PATTERN = r"^[0-9]{1,15}([.][0-9]{1,3})?(k|Ki|M|Mi|G|Gi|T|Ti)?$"
DURATION_PATTERN = r"^([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?([0-9]{1,9}ms)?$"
"""Every part is bounded, so that a rule can compute with whatever is taken."""
FOREVER = -1
LARGEST_CONTEXT = 16_777_216
LONGEST_SECONDS = 31_536_000

Whole = Annotated[int, Strict()]
"""An integer; like the API server pydantic takes no text, truth value or fraction for one."""
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, min_length=1, max_length=40)]
"""Of a Model, a ModelPool or an adapter."""
ObjectName = Annotated[str, StringConstraints(pattern=OBJECT_NAME_PATTERN, min_length=1, max_length=253)]
"""Of a Secret or a PersistentVolumeClaim."""
Decimal = Annotated[str, StringConstraints(pattern=DECIMAL_PATTERN, max_length=10)]
Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./:-]*$", min_length=1, max_length=120)]


def _int_or_string(pattern: str, minimum: int, maximum: int, **text: int) -> WithJsonSchema:
    """Bounds of the number, and the pattern (and lengths) of the text that may stand in its place."""
    # No anyOf beside the marker: the API server would name it in each refusal, after the sentence that says it all.
    marker = {"x-kubernetes-int-or-string": True}
    return WithJsonSchema({**marker, "pattern": pattern, **text, "minimum": minimum, "maximum": maximum})


SUFFIXES = {"": 0, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGT", 1)
}
"""Kubernetes' suffixes of bytes."""


def memory_bytes(text: str) -> int:
    """Bytes of a size such as `24GiB`, `8Gi` or `500M`. Raises ValueError saying what is taken."""
    given = re.match(MEMORY_PATTERN, text.strip().removesuffix("B"))
    if given is None:
        raise ValueError(f"'{text}' is no size of memory; write it as 24GiB, 8Gi, 500M or a number of bytes")
    suffix = given[2] or ""
    return int(float(given[0].removesuffix(suffix)) * (SUFFIXES[suffix] or 1))


def _text_of_whole(value: object) -> object:
    """A quantity may be written as a number, as in `cpu: 2`; it is kept as text."""
    return str(value) if type(value) is int else value


Cpu = Annotated[
    str, BeforeValidator(_text_of_whole), StringConstraints(pattern=CPU_PATTERN, max_length=8),
    _int_or_string(CPU_PATTERN, 0, 9999, maxLength=8),
]  # fmt: skip
"""Processors: 2, 0.5 or 500m."""
Memory = Annotated[
    str, BeforeValidator(_text_of_whole), StringConstraints(pattern=MEMORY_PATTERN, max_length=21),
    _int_or_string(MEMORY_PATTERN, 0, 999_999_999_999_999, maxLength=21),
]  # fmt: skip
"""Bytes, with one of Kubernetes' suffixes but m: a thousandth of a byte is always a slip for M."""
ContextLength = Annotated[
    Annotated[Whole, Field(ge=4, le=LARGEST_CONTEXT)] | Literal["Auto"], _int_or_string("^Auto$", 4, LARGEST_CONTEXT)
]
Slots = Annotated[Annotated[Whole, Field(ge=1, le=1024)] | Literal["Auto"], _int_or_string("^Auto$", 1, 1024)]
Duration = Annotated[
    Annotated[Whole, Field(ge=FOREVER, le=LONGEST_SECONDS)]
    | Annotated[str, StringConstraints(pattern=DURATION_PATTERN, min_length=1, max_length=32)],
    _int_or_string(DURATION_PATTERN, FOREVER, LONGEST_SECONDS, minLength=1, maxLength=32),
]
"""Seconds as a number, or a duration such as 5m or 1h30m; -1 is for ever."""
_PART_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def duration_seconds(duration: int | str) -> float:
    """Seconds of a `Duration` that is none of for ever."""
    if isinstance(duration, int):
        return float(duration)
    return sum(int(number) * _PART_SECONDS[unit] for number, unit in re.findall(r"([0-9]+)(ms|h|m|s)", duration))
