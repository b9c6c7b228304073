"""Whether a live object already is as desired. Pure; used by `act` so that needless applies are never sent.

The API server adds defaults and other controllers add fields, so the question is whether the desired object is
contained in the live one. What was desired earlier and no longer is shows in the digest annotation.
"""

import re
from decimal import Decimal
from typing import Any

from tandem_api.names import TEMPLATE_HASH_ANNOTATION
from tandem_operator.kinds import Obj

_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti)?$")
_FACTORS = {
    None: Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip
NO_LONGER_WANTED = "a field that is no longer wanted"
_IDENTITY = ("name", "mountPath", "uid")


def difference(desired: Obj, live: Obj) -> str | None:
    """The path of the first desired thing that `live` lacks, or None when there is none.

    `NO_LONGER_WANTED` when nothing is lacking, but the live object was made from another plan.
    """
    metadata = {key: value for key, value in desired["metadata"].items() if key != "annotations"}
    lacking = _missing({**desired, "metadata": metadata}, live, "")
    if lacking is not None:
        return lacking
    wanted = desired["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    present = (live["metadata"].get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION)
    return None if present == wanted else NO_LONGER_WANTED


def _missing(desired: Any, live: Any, path: str) -> str | None:
    if isinstance(desired, dict):
        if not isinstance(live, dict):
            # The API server leaves out what is empty: `emptyDir: {}` stays, an empty map of labels does not.
            return None if not desired and live is None else path
        return _first(_missing(value, live.get(key), f"{path}.{key}".lstrip(".")) for key, value in desired.items())
    if isinstance(desired, list):
        if not desired and live is None:
            return None
        return _missing_items(desired, live, path) if isinstance(live, list) else path
    return None if desired == live or _same_quantity(desired, live) else path


def _missing_items(desired: list[Any], live: list[Any], path: str) -> str | None:
    identity = next(
        (key for key in _IDENTITY if all(isinstance(one, dict) and key in one for one in [*desired, *live])), None
    )
    if identity is None or len({one[identity] for one in live}) != len(live):
        if len(desired) != len(live):
            return path
        return _first(
            _missing(one, other, f"{path}[{n}]") for n, (one, other) in enumerate(zip(desired, live, strict=True))
        )
    by_identity = {one[identity]: one for one in live}
    return _first(_missing(one, by_identity.get(one[identity]), f"{path}[{one[identity]}]") for one in desired)


def _first(paths: Any) -> str | None:
    return next((path for path in paths if path is not None), None)


def _same_quantity(desired: Any, live: Any) -> bool:
    """Whether two strings say the same quantity: the API server writes `0.5` as `500m`."""
    if not (isinstance(desired, str) and isinstance(live, str)):
        return False
    one, other = _QUANTITY.match(desired), _QUANTITY.match(live)
    if one is None or other is None:
        return False
    return Decimal(one[1]) * _FACTORS[one[2]] == Decimal(other[1]) * _FACTORS[other[2]]
