"""The part of the tables that Model and ModelPool have in common: names, durations, resources and scaling of pods."""

from tandem_testing.crd import Ruled, Values
from tandem_testing.kube import Obj

_INVALID = 'Invalid value: "object": '
INVALID = 'Invalid value: "object": '
OWN_PODS_ONLY = (
    "spec.{0}: Forbidden: {0} is for a Model with pods of its own; with pool set, the ModelPool's pods serve it: leave "
    "out {0}, or pool"
)
_REPLICAS = "spec.replicas: Forbidden: with scaling.mode Auto Tandem decides on replicas: leave replicas out"
_MODE_AUTO = (
    f"spec.scaling.mode: {INVALID}min, max, targetUtilization and idleSecondsToZero are for mode Auto; with External, "
    "replicas says it all"
)
_MAX = f"spec.scaling.max: {INVALID}scaling.max (1 when left out) must not be smaller than scaling.min"
_IDLE = (
    "spec.scaling.idleSecondsToZero: Forbidden: idleSecondsToZero needs scaling.min 0: with more, some pod is "
    "always kept"
)

NAMES = Values(["a", "0", "a-1", "a" * 40], ["", "A", "-a", "a-", "a.b", "é", "a\n", "a" * 41])
OBJECT_NAMES = Values(["a", "a.b-c", "a" * 253], ["", "A", "-a", "a.", "a_b", "a" * 254])
DURATIONS = Values(
    [-1, 0, 31_536_000, "0s", "5m", "1h30m", "200ms", "9999h999999m99999999s999999999ms"],
    [-2, 31_536_001, "", "5", "-1", "5 m", "1d", "10000h", "1.5h", "m", "9999h999999m99999999s999999999ms0"],
)
MEMORY = Values(
    [0, 999_999_999_999_999, "8Gi", "1.5G", "999999999999999.999Gi"],
    [-1, 1_000_000_000_000_000, "", "lots", "512m", "8 Gi", "8gi", "999999999999999.9999Gi"],
)
AUTO: Obj = {"scaling": {"mode": "Auto", "min": 0, "max": 1000}}
POD_FIELDS: dict[str, Values] = {
    "resources.cpu": Values(
        [0, 9999, "2", "0.5", "500m", "9999999m"], [-1, 10_000, "", "two", "0.5m", "1Gi", ".5", "99999999m"]
    ),
    "resources.memory": MEMORY,
    "scaling.mode": Values(["Auto", "External"], ["Manual"]),
    "scaling.min": Values([0, 1000], [-1, 1001], AUTO, (_MAX,)),
    "scaling.max": Values([1, 1000], [0, 1001], {"scaling": {"mode": "Auto"}}, (_MAX,)),
    "scaling.targetUtilization": Values([1, 100], [0, 101], AUTO),
    "scaling.idleSecondsToZero": Values([1, 31_536_000], [0, 31_536_001], AUTO),
    # The scale subresource has a word of its own on it.
    "replicas": Values(
        [0, 1000], [-1, 1001], {}, (".spec.replicas: Invalid value: -1: should be a non-negative integer",)
    ),
}


def scaling_rules(least: Obj) -> dict[str, Ruled]:
    """The rules of scaling, for a kind whose smallest spec is `least`."""

    def ruled(good: Obj, bad: Obj, told: str) -> Ruled:
        return Ruled({**least, **good}, {**least, **bad}, (told,))

    def auto(**fields: int) -> Obj:
        return {"scaling": {"mode": "Auto", **fields}}

    external: Obj = {"scaling": {"mode": "External"}}
    only_auto = {"min": 0, "max": 1, "targetUtilization": 50, "idleSecondsToZero": 9}
    return {
        "replicas while Tandem scales": ruled({"replicas": 1, **external}, {"replicas": 1, **auto()}, _REPLICAS),
        **{
            f"scaling.{field} while others scale": ruled(
                auto(**{"min": 0, field: value}), {"scaling": {"mode": "External", field: value}}, _MODE_AUTO
            )
            for field, value in only_auto.items()
        },
        "fewer pods at most than at least": ruled(auto(min=2, max=2), auto(min=3, max=2), _MAX),
        "more pods at least than the one that is meant": ruled(auto(min=1), auto(min=2), _MAX),
        "idle seconds with a pod kept": ruled(
            auto(min=0, idleSecondsToZero=9), auto(min=1, max=2, idleSecondsToZero=9), _IDLE
        ),
    }
