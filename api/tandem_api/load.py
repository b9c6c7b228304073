"""The load header: a pod's answer carries its model's load, so that routing is fresher than polling.

`x-tandem-load: busy=2, queued=0, slots=4` is set by the serving pod, read and removed by the gateway.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """Slots of one model in one pod: in use and in all, and requests that wait for one."""

    busy: int
    queued: int
    slots: int

    def to_header(self) -> str:
        """The header's value."""
        return f"busy={self.busy}, queued={self.queued}, slots={self.slots}"

    @classmethod
    def from_header(cls, value: str) -> "Load | None":
        """Reads a header's value; None when it is not of this form."""
        fields: dict[str, int] = {}
        for part in value.split(","):
            name, _, number = part.strip().partition("=")
            if not number.isdecimal():
                return None
            fields[name] = int(number)
        if fields.keys() != {"busy", "queued", "slots"}:
            return None
        return cls(**fields)
