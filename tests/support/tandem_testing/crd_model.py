"""The table of Model: what each field and each rule just takes and just refuses, and in which words.

Bounds of single fields are values; the words that must refuse them follow from the schema. Rules between fields are
specs with the words in full. The cluster tests put both to a real API server, and see that they leave nothing out.
"""

from tandem_api.crd import KINDS
from tandem_testing.crd import Ruled, Table, Values
from tandem_testing.crd_shared import DURATIONS, INVALID, NAMES, OBJECT_NAMES, OWN_PODS_ONLY, POD_FIELDS, scaling_rules
from tandem_testing.kube import Obj

HF: Obj = {"source": "hf://org/name"}
OWN_PODS: Obj = {
    "source": "hf://Qwen/Qwen3-0.6B",
    "revision": "refs/pr/1",
    "task": "Generate",
    "engine": "Auto",
    "aliases": ["qwen3:0.6b", "Qwen/Qwen3"],
    "context": {"length": 4096, "minLength": 2048, "whenShort": "Fail"},
    "slots": 16,
    "kvCache": {"policy": "Shared", "dtype": "FP8"},
    "queue": {"max": 0, "timeoutSeconds": 1},
    "keepAlive": "5m",
    "keepAliveMax": "1h30m",
    "residency": "Pinned",
    "scheduling": "Plain",
    "dtype": "BFloat16",
    "quantization": "Int8",
    "adapters": [{"name": "sql", "source": "hf://org/sql", "revision": "main"}],
    "engineArgs": [{"name": "swap-space", "value": "4"}],
    "defaults": {"temperature": "0.7", "topP": "0.95", "topK": 40, "maxTokens": 100},
    "secretRef": {"name": "hub-token"},
    "device": "CPU",
    "resources": {"gpus": 2, "cpu": "500m", "memory": "8Gi"},
    "scaling": {"mode": "External"},
    "topology": {"nodes": 2},
    "replicas": 0,
}
SCALED: Obj = {
    **HF,
    "scaling": {"mode": "Auto", "min": 0, "max": 3, "targetUtilization": 80, "idleSecondsToZero": 60},
}
POOLED: Obj = {
    "source": "file:///models/a",
    "pool": "shared",
    "copies": {"min": 1, "max": 2},
    "adapters": [{"name": "a", "source": "file:///models/a.sql"}],
}
VALID = {"with pods of its own": OWN_PODS, "scaled by Tandem": SCALED, "in a pool": POOLED}
"""Together they set every field there is."""

ADAPTER: Obj = {"adapters": [{"name": "a", "source": "hf://org/a"}]}
ARGUMENT: Obj = {"engineArgs": [{"name": "a"}]}
REVISIONS = Values(["a", "refs/pr/1", "v1.0_x-y", "a" * 128], ["", "a b", "a\n", "é", "a" * 129])
SOURCES = Values(["hf://a/b", f"hf://a/{'b' * 505}"], [f"hf://a/{'b' * 506}"])
DECIMALS = Values(
    ["0", "0.123456", "001.000000", "1"], ["", "hot", "1.", ".5", "1e0", "-1", "٣", "1000", "0.1234567", "0.123456789"]
)

_SHORTER = (
    f"spec.context.minLength: {INVALID}context.minLength (256 when left out) must not be larger than context.length"
)
_FILES_NEED_A_POOL = (
    "spec.pool: Required value: a file:// source needs a pool, whose fileRoots say which folders may be read"
)
_ORDER = f"spec.keepAliveMax: {INVALID}keepAliveMax must not be shorter than keepAlive"
_ADAPTER = "spec.adapters[0].source: "
_SCHEME = INVALID + "source must begin with hf://, pvc://, file://, s3://, gs:// or oci://"
_HF = INVALID + "an hf:// source is hf://organisation/name"
_PVC = INVALID + "a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. in its path"
_FILE = INVALID + "a file:// source is file:///folder, an absolute path without . or .."
_BUCKET = INVALID + "an s3:// or gs:// source is scheme://bucket/folder, without . or .. in its path"
_OCI = INVALID + "an oci:// source is oci://registry/repository:tag or oci://registry/repository@sha256:digest"
DIGEST = "sha256:" + "0123456789abcdef" * 4

SOURCES_TAKEN = (
    "hf://a/b", "hf://Org-1/Name_1.2", "pvc://c", "pvc://c.d-e/a/b_c.d", "pvc://c/..a", "file:///a", "file:///a/.b/c-d",
    "s3://bucket", "s3://b.c_d/a=1/b", "gs://bucket/a", "oci://registry/a:tag", "oci://registry.example:5000/a/b/c:v1.0",
    f"oci://registry/a@{DIGEST}",
)  # fmt: skip
SOURCES_REFUSED = {
    _SCHEME: ("/etc/passwd", "http://a/b", "ftp://a/b", "HF://a/b", "a/b", " hf://a/b", "docker://a/b:c"),
    _HF: ("hf://name", "hf://a/b/c", "hf:///b", "hf://a/", "hf://../b", "hf://a/..", "hf://a b/c", "hf://a/b\n"),
    _PVC: (
        "pvc://claim/../x", "pvc://claim/a/..", "pvc://claim/./x", "pvc://claim/.", "pvc://Claim/x", "pvc:///x", "pvc://c/",
        "pvc://c//x", "pvc://../x", "pvc://c/a b",
    ),
    _FILE: ("file://a", "file://host/a", "file:///a/../b", "file:///..", "file:///", "file:///a//b", "file:///a/./b"),
    _BUCKET: ("s3://B/a", "gs://a", "s3:///a", "s3://bucket/../x", "gs://bucket/a/..", "s3://bucket//a", "s3://bucket/"),
    _OCI: ("oci://registry", "oci://registry/a", "oci://registry/A:tag", "oci://registry/a@sha256:12", "oci://r/a:"),
}  # fmt: skip


FIELDS: dict[str, Values] = {
    "source": Values(
        SOURCES.good, ["", *SOURCES.bad],
        also=(f"spec.source: {_SCHEME}",),
    ),
    "revision": REVISIONS,
    "task": Values(["Auto", "Generate", "Embed"], ["auto", "Dance"]),
    "engine": Values(["Auto", "Native", "VLLM"], ["vLLM"]),
    "aliases": Values([[], [f"a{n}" for n in range(16)]], [[f"a{n}" for n in range(17)]]),
    "aliases[]": Values(["a", "Org/a_b.c:d-e", "a" * 120], ["", "a b", ":a", "é", "a" * 121]),
    "context.length": Values(
        [4, 16_777_216, "Auto"], [3, 16_777_217, "auto", "4096"], {"context": {"minLength": 4}},
        (_SHORTER,),
    ),
    "context.minLength": Values([4, 16_777_216], [3, 16_777_217]),
    "context.whenShort": Values(["Shrink", "Fail"], ["Spill"]),
    "slots": Values([1, 1024, "Auto"], [0, 1025, "Many", "4"]),
    "kvCache.policy": Values(["Guaranteed", "Shared"], ["None"]),
    "kvCache.dtype": Values(["Auto", "FP8"], ["Int4"]),
    "queue.max": Values([0, 65_536], [-1, 65_537]),
    "queue.timeoutSeconds": Values([1, 86_400], [0, 86_401]),
    "keepAlive": DURATIONS,
    "keepAliveMax": DURATIONS,
    "residency": Values(["Evictable", "Pinned"], ["Resident"]),
    "scheduling": Values(["Overlapped", "Plain"], ["Fast"]),
    "dtype": Values(["Auto", "Float32", "BFloat16", "Float16"], ["bfloat16"]),
    "quantization": Values(["None", "Int8", "Int4", "FP8"], ["INT8"]),
    "adapters": Values(
        [[{"name": f"a{n}", "source": "hf://a/b"} for n in range(64)]],
        [[{"name": f"a{n}", "source": "hf://a/b"} for n in range(65)]],
    ),
    "adapters[].name": Values(NAMES.good, NAMES.bad, ADAPTER),
    "adapters[].source": Values(
        SOURCES.good, ["", *SOURCES.bad], ADAPTER,
        (f"{_ADAPTER}{_SCHEME}",),
    ),
    "adapters[].revision": Values(REVISIONS.good, REVISIONS.bad, ADAPTER),
    "engineArgs": Values([[{"name": f"a{n}"} for n in range(64)]], [[{"name": f"a{n}"} for n in range(65)]]),
    "engineArgs[].name": Values(["a", "max-num-seqs", "a" * 64], ["", "A", "--a", "a_b", "a=b", "a" * 65], ARGUMENT),
    "engineArgs[].value": Values(["", "a b é", "a" * 1024], ["a" * 1025], ARGUMENT),
    "defaults.temperature": Values([*DECIMALS.good, "100.000000"], DECIMALS.bad),
    "defaults.topP": Values(DECIMALS.good[1:], DECIMALS.bad),
    "defaults.topK": Values([0, 1_000_000], [-1, 1_000_001]),
    "defaults.maxTokens": Values([1, 16_777_216], [0, 16_777_217]),
    "secretRef.name": OBJECT_NAMES,
    "pool": NAMES,
    "copies.min": Values([0, 1000], [-1, 1001], {"pool": "p"}),
    "copies.max": Values([1, 1000], [0, 1001], {"pool": "p"}),
    "device": Values(["GPU", "CPU"], ["TPU"]),
    "resources.gpus": Values([1, 16], [0, 17]),
    "topology.nodes": Values([1, 64], [0, 65]),
    **POD_FIELDS,
}  # fmt: skip
"""Values that a field just takes and just refuses."""


def sourced(source: str) -> Obj:
    """A spec with this source, in a pool where it must be in one."""
    return {"source": source, **({"pool": "p"} if source.startswith("file://") else {})}


def adapted(source: str) -> Obj:
    """A spec with an adapter of this source."""
    return {**HF, "pool": "p", "adapters": [{"name": "a", "source": source}]}


RULES: dict[str, Ruled] = {
    **{f"source {bad!r}": Ruled(sourced(SOURCES_TAKEN[0]), sourced(bad), (f"spec.source: {words}",))
       for words, sources in SOURCES_REFUSED.items() for bad in sources},
    **{f"source {good!r}, not just any": Ruled(sourced(good), sourced(f"x{good}"), (f"spec.source: {_SCHEME}",))
       for good in SOURCES_TAKEN},
    **{f"adapter of {bad!r}": Ruled(adapted(SOURCES_TAKEN[0]), adapted(bad), (f"{_ADAPTER}{words}",))
       for words, sources in SOURCES_REFUSED.items() for bad in sources},
    **{f"adapter of {good!r}, not just any": Ruled(adapted(good), adapted(f"x{good}"), (f"{_ADAPTER}{_SCHEME}",))
       for good in SOURCES_TAKEN},
    "revision of a claim": Ruled(
        {"source": "hf://a/b", "revision": "main"},
        {"source": "pvc://c", "revision": "main"},
        ("spec.revision: Forbidden: revision is for hf:// sources only",),
    ),
    "revision of an adapter": Ruled(
        {**HF, "adapters": [{"name": "a", "source": "hf://a/b", "revision": "main"}]},
        {**HF, "adapters": [{"name": "a", "source": "pvc://c", "revision": "main"}]},
        ("spec.adapters[0].revision: Forbidden: revision is for hf:// sources only",),
    ),
    "a file without a pool": Ruled(
        {"source": "file:///a", "pool": "p"}, {"source": "file:///a"}, (_FILES_NEED_A_POOL,)
    ),
    "an adapter's file without a pool": Ruled(
        adapted("file:///a"),
        {**HF, "adapters": [{"name": "a", "source": "file:///a"}]},
        (f"{_FILES_NEED_A_POOL}; an adapter has one",),
    ),
    **{
        f"{field} with a pool": Ruled(
            {**HF, field: value}, {**HF, "pool": "p", field: value}, (OWN_PODS_ONLY.format(field),)
        )
        for field, value in {
            "device": "GPU", "resources": {}, "scaling": {"mode": "External"}, "topology": {}, "replicas": 1,
        }.items()
    },
    "copies without a pool": Ruled(
        {**HF, "pool": "p", "copies": {}},
        {**HF, "copies": {}},
        ("spec.copies: Forbidden: copies are for a Model with a pool; without one, set replicas",),
    ),
    "fewer copies at most than at least": Ruled(
        {**HF, "pool": "p", "copies": {"min": 2, "max": 2}},
        {**HF, "pool": "p", "copies": {"min": 3, "max": 2}},
        (f"spec.copies.max: {INVALID}copies.max must not be smaller than copies.min",),
    ),
    "arguments of vLLM for the native engine": Ruled(
        {**HF, "engine": "VLLM", "engineArgs": [{"name": "a"}]},
        {**HF, "engine": "Native", "engineArgs": [{"name": "a"}]},
        ("spec.engineArgs: Forbidden: engineArgs are for vLLM: leave them out, or let engine be VLLM or Auto",),
    ),
    "no arguments of vLLM for the native engine": Ruled(
        {**HF, "engine": "Native", "engineArgs": []}, {**HF, "engine": "Native", "engineArgs": [{}]},
        ("spec.engineArgs[0].name: Required value",),
    ),
    **scaling_rules(HF),
    "a context below its minimum": Ruled(
        {**HF, "context": {"length": 256}},
        {**HF, "context": {"length": 255}},
        (_SHORTER,),
    ),
    "a temperature": Ruled(
        {**HF, "defaults": {"temperature": "100.0"}},
        {**HF, "defaults": {"temperature": "100.1"}},
        (f"spec.defaults.temperature: {INVALID}defaults.temperature is at most 100",),
    ),
    "topP 0": Ruled(
        {**HF, "defaults": {"topP": "0.000001"}},
        {**HF, "defaults": {"topP": "0.0"}},
        (f"spec.defaults.topP: {INVALID}defaults.topP is above 0 and at most 1",),
    ),
    "topP in percent": Ruled(
        {**HF, "defaults": {"topP": "1"}},
        {**HF, "defaults": {"topP": "95"}},
        (f"spec.defaults.topP: {INVALID}defaults.topP is above 0 and at most 1",),
    ),
    **{
        f"keepAlive {keep}, at most {good} or {bad}": Ruled(
            {**HF, "keepAlive": keep, "keepAliveMax": good}, {**HF, "keepAlive": keep, "keepAliveMax": bad}, (_ORDER,)
        )
        for keep, good, bad in (
            ("5m", 300, 299), (300, "5m", "4m59s"), ("500ms", "501ms", "499ms"), (-1, -1, "9999h"), ("9999h", -1, "1s"),
            ("1h", "60m", "59m59s"),
        )
    },
    "an alias twice": Ruled({**HF, "aliases": ["a", "A"]}, {**HF, "aliases": ["a", "a"]},
                            ('spec.aliases[1]: Duplicate value: "a"',)),
    "an adapter twice": Ruled(
        {**HF, "adapters": [{"name": "a", "source": "hf://a/b"}, {"name": "b", "source": "hf://a/b"}]},
        {**HF, "adapters": [{"name": "a", "source": "hf://a/b"}, {"name": "a", "source": "hf://a/c"}]},
        ('spec.adapters[1]: Duplicate value: {"name":"a"}',),
    ),
    "an argument twice": Ruled(
        {**HF, "engineArgs": [{"name": "a"}, {"name": "b"}]},
        {**HF, "engineArgs": [{"name": "a"}, {"name": "a", "value": "1"}]},
        ('spec.engineArgs[1]: Duplicate value: {"name":"a"}',),
    ),
}  # fmt: skip
MISSING = {
    "source": ({}, "spec.source: Required value"),
    "adapters[].name": ({**HF, "adapters": [{"source": "hf://a/b"}]}, "spec.adapters[0].name: Required value"),
    "adapters[].source": ({**HF, "adapters": [{"name": "a"}]}, "spec.adapters[0].source: Required value"),
    "engineArgs[].name": ({**HF, "engineArgs": [{"value": "a"}]}, "spec.engineArgs[0].name: Required value"),
    "secretRef.name": ({**HF, "secretRef": {}}, "spec.secretRef.name: Required value"),
    "scaling.mode": ({**HF, "scaling": {}}, "spec.scaling.mode: Required value"),
}

MODEL = Table(KINDS[0], "default", HF, VALID, FIELDS, RULES, MISSING)
