"""Names that several pieces must spell alike: API group, labels, ports, paths and derived object names.

On the path of a reconcile these tie a Model to what it owns; on the path of a request they let the gateway find
the pods of a Model without asking the operator.
"""

GROUP = "tandem.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "tandem-operator"
STATUS_FIELD_MANAGER = "tandem-operator-status"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGED_BY = "tandem"
COMPONENT_LABEL = "app.kubernetes.io/component"
SERVER_COMPONENT = "server"
POOL_LABEL = f"{GROUP}/pool"
POOL_KIND_LABEL = f"{GROUP}/pool-kind"
POOL_UID_LABEL = f"{GROUP}/pool-uid"
CREDENTIALS_LABEL = f"{GROUP}/model-credentials"
"""`"true"` on a Secret that Models may name; the operator reads no other."""
CREDENTIALS_USABLE = "true"
CREDENTIALS_OWN = "own"
"""The value on Secrets that the operator itself makes, so that one watch sees both."""

TEMPLATE_HASH_ANNOTATION = f"{GROUP}/template-hash"
CATALOG_REVISION_ANNOTATION = f"{GROUP}/catalog-revision"
"""Written on a pool's pods when the catalog changed, so that the kubelet refreshes the mounted file at once."""

HTTP_PORT = 8080
"""Clients' APIs; asks for the pool key inside Kubernetes."""
INTERNAL_PORT = 8081
"""Report and metrics; asks for the pool key inside Kubernetes."""
HEALTH_PORT = 8082
"""`/healthz` and `/readyz` for the kubelet; says nothing else and asks for no key."""

CATALOG_FOLDER = "/etc/tandem/catalog"
CATALOG_FILE = "catalog.json"
POOL_KEY_FOLDER = "/etc/tandem/pool-key"
POOL_KEY_FILE = "key"
CLAIMS_FOLDER = "/models"
"""A pod mounts each claim that a `pvc://` source names at `/models/<claim>`, read-only."""
CREDENTIALS_FOLDER = "/etc/tandem/credentials"
"""Holds the key `KEY` of the Secret that the Model `NAME` refers to as the file `NAME.KEY`."""
CACHE_FOLDER = "/var/cache/tandem"

CONTEXT_HEADER = "x-tandem-context-length"
LOAD_HEADER = "x-tandem-load"
CALLER_HEADER = "x-tandem-caller"
"""From a gateway to a pod: who asks. Keep-alives are told apart by it."""
KEEP_ALIVE_HEADER = "x-tandem-keep-alive"
"""Seconds for which a request that wished something keeps its model, -1 for ever."""
REFUSED_HEADER = "x-tandem-refused"
REFUSED_QUEUE_FULL = "queue_full"
REFUSED_QUEUE_TIMEOUT = "queue_timeout"
REFUSED_DRAINING = "draining"
"""The one refusal that the gateway replays on another pod."""

MAX_NAME_LENGTH = 40


def owned_name(kind: str, name: str) -> str:
    """Name of every object owned by the Model or ModelPool `name`: `tandem-m-<model>` or `tandem-p-<pool>`."""
    return f"tandem-{ {'Model': 'm', 'ModelPool': 'p'}[kind] }-{name}"
