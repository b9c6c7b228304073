"""The table of ModelPool, as `crd_model` is that of Model."""

from tandem_api.crd import KINDS
from tandem_testing.crd import Ruled, Table, Values
from tandem_testing.crd_shared import DURATIONS, INVALID, MEMORY, OBJECT_NAMES, POD_FIELDS, scaling_rules
from tandem_testing.kube import Obj

EXTERNAL: Obj = {
    "device": "CPU",
    "gpusPerPod": 2,
    "resources": {"cpu": "500m", "memory": "8Gi"},
    "replicas": 3,
    "scaling": {"mode": "External"},
    "maxLoadedModels": 2,
    "maxQueue": 0,
    "keepAlive": "5m",
    "contextPolicy": "Fail",
    "cache": {"claim": "cache"},
    "volumes": [{"claim": "weights"}, {"claim": "more.weights"}],
    "fileRoots": ["/models", "/mnt/a.b/c_d"],
    "image": "registry.example:5000/tandem/server:1.0@sha256:0123",
    "podTemplate": {
        "metadata": {"labels": {"team": "search"}, "annotations": {"example.dev/why": "because"}},
        "spec": {"nodeSelector": {"gpu": "h100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    },
    "rollout": {"maxSurge": 0, "maxUnavailable": 1},
}
AUTO: Obj = {
    "cache": {"sizeLimit": "100Gi"},
    "scaling": {"mode": "Auto", "min": 0, "max": 3, "targetUtilization": 80, "idleSecondsToZero": 60},
}
VALID = {"scaled by others": EXTERNAL, "scaled by Tandem": AUTO}
"""Together they set every field there is."""

CLAIM: Obj = {"volumes": [{"claim": "a"}]}
_SURGE = f"spec.rollout.maxSurge: {INVALID}maxSurge and maxUnavailable must not both be 0"

FIELDS: dict[str, Values] = {
    "device": Values(["GPU", "CPU"], ["TPU"]),
    "gpusPerPod": Values([1, 16], [0, 17]),
    **POD_FIELDS,
    "maxLoadedModels": Values([0, 1000], [-1, 1001]),
    "maxQueue": Values([0, 65_536], [-1, 65_537]),
    "keepAlive": DURATIONS,
    "contextPolicy": Values(["Shrink", "Fail"], ["Spill"]),
    "cache.claim": OBJECT_NAMES,
    "cache.sizeLimit": MEMORY,
    "volumes": Values([[], [{"claim": f"c{n}"} for n in range(32)]], [[{"claim": f"c{n}"} for n in range(33)]]),
    "volumes[].claim": Values(OBJECT_NAMES.good, OBJECT_NAMES.bad, CLAIM),
    "fileRoots": Values([[], [f"/{n}" for n in range(16)]], [[f"/{n}" for n in range(17)]]),
    "fileRoots[]": Values(
        ["/a", "/mnt/a.b/c_d-e", f"/{'a' * 255}"],
        ["", "/", "a", "/a/", "/a//b", "/a/../b", "/..", "/.a", "/a b", "/a\n", f"/{'a' * 256}"],
    ),
    "image": Values(["a", "r.example:5000/a/b_c:v1.0@sha256:12", "a" * 512], ["", "-a", "a b", "é", "a" * 513]),
    "podTemplate.metadata.labels": Values([{str(n): "" for n in range(32)}], [{str(n): "" for n in range(33)}]),
    "podTemplate.metadata.labels.*": Values(["", "a", "A.b_c-1", "a" * 63], ["-a", "a.", "a b", "é", "a" * 64]),
    "podTemplate.metadata.annotations": Values([{str(n): "" for n in range(32)}], [{str(n): "" for n in range(33)}]),
    "podTemplate.metadata.annotations.*": Values(["", "a b é", "a" * 4096], ["a" * 4097]),
    "rollout.maxSurge": Values([0, 100], [-1, 101], {"rollout": {"maxUnavailable": 1}}, (_SURGE,)),
    "rollout.maxUnavailable": Values([0, 100], [-1, 101], {}, (_SURGE,)),
}
"""Values that a field just takes and just refuses."""

RULES: dict[str, Ruled] = {
    **scaling_rules({}),
    "a limit of a claim": Ruled(
        {"cache": {"sizeLimit": "1Gi"}},
        {"cache": {"sizeLimit": "1Gi", "claim": "a"}},
        ("spec.cache.sizeLimit: Forbidden: sizeLimit is for a cache without a claim: leave out sizeLimit, or claim",),
    ),
    "no pod more and no pod less": Ruled(
        {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}, {"rollout": {"maxSurge": 0}}, (_SURGE,)
    ),
    **{
        f"{field} of Tandem's own": Ruled(
            {"podTemplate": {"metadata": {field: {"example.tandem.dev/pool": "a", "tandem.dev": "a"}}}},
            {"podTemplate": {"metadata": {field: {"tandem.dev/pool": "a"}}}},
            (
                f"spec.podTemplate.metadata.{field}: Forbidden: {field} that begin with tandem.dev/ are Tandem's own: "
                "leave them out",
            ),
        )
        for field in ("labels", "annotations")
    },
    "a claim twice": Ruled(
        {"volumes": [{"claim": "a"}, {"claim": "b"}]},
        {"volumes": [{"claim": "a"}, {"claim": "a"}]},
        ('spec.volumes[1]: Duplicate value: {"claim":"a"}',),
    ),
    "a root twice": Ruled(
        {"fileRoots": ["/a", "/a/b"]}, {"fileRoots": ["/a", "/a"]}, ('spec.fileRoots[1]: Duplicate value: "/a"',)
    ),
}
MISSING: dict[str, tuple[Obj, str]] = {
    "volumes[].claim": ({"volumes": [{}]}, "spec.volumes[0].claim: Required value"),
    "scaling.mode": ({"scaling": {}}, "spec.scaling.mode: Required value"),
}

POOL = Table(KINDS[1], "default", {}, VALID, FIELDS, RULES, MISSING)
