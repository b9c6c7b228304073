"""Second step of a reconcile: what should exist for a Model. Pure: equal inputs give equal objects, no I/O.

Every object bears a digest of itself. A live object with another digest is out of date; one with the same digest
that lacks something desired was changed by somebody. Neither needs the operator's memory, so a restart writes nothing.
"""

import base64
import hashlib

from pydantic_core import to_json

from tandem_api.catalog import ALL_PODS, Catalog, CatalogModel
from tandem_api.keys import pool_key
from tandem_api.model import ModelSpec
from tandem_api.names import (
    API_VERSION,
    CATALOG_FILE,
    COMPONENT_LABEL,
    HTTP_PORT,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    POOL_KEY_FILE,
    POOL_KIND_LABEL,
    POOL_LABEL,
    POOL_UID_LABEL,
    SERVER_COMPONENT,
    TEMPLATE_HASH_ANNOTATION,
    owned_name,
)
from tandem_operator.cache import ModelKey
from tandem_operator.config import ServerConfig
from tandem_operator.kinds import CONFIG_MAP, DEPLOYMENT, MODEL, SECRET, SERVICE, Kind, Obj
from tandem_operator.observe import Desired, Observed, Plan
from tandem_operator.pods import deployment_spec


def selector_of(key: ModelKey, uid: str) -> dict[str, str]:
    """Labels that the pods of this very Model have, and those of an earlier one of the same name have not."""
    return {POOL_KIND_LABEL: MODEL.name, POOL_LABEL: key.name, POOL_UID_LABEL: uid}


def _labels(key: ModelKey, uid: str) -> dict[str, str]:
    return {MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: SERVER_COMPONENT, **selector_of(key, uid)}


def catalog_of(key: ModelKey, uid: str, spec: ModelSpec) -> Catalog:
    """The catalog of a pool of one: its Model, which every pod loads before it turns ready.

    The Model's generation is left out: it counts changes of fields that no pod reads, such as `replicas`.
    """
    model = CatalogModel.of(key.name, uid, spec)
    return Catalog(
        namespace=key.namespace, pool=key.name, models=[model], preload={ALL_PODS: [key.name]}
    ).with_revision()


def _object(kind: Kind, observed: Observed, content: Obj) -> Desired:
    key = observed.key
    owner = {
        "apiVersion": API_VERSION,
        "kind": MODEL.name,
        "name": key.name,
        "uid": observed.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata: Obj = {
        "name": owned_name(MODEL.name, key.name),
        "namespace": key.namespace,
        "labels": _labels(key, observed.uid),
        "ownerReferences": [owner],
    }
    obj: Obj = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **content}
    metadata["annotations"] = {TEMPLATE_HASH_ANNOTATION: hashlib.sha256(to_json(obj)).hexdigest()[:16]}
    return Desired(kind, obj)


def plan(observed: Observed, server: ServerConfig, master: bytes) -> Plan:
    """What should exist for a valid Model, in the order of creation. Raises ValueError for an invalid one."""
    if observed.spec is None:
        raise ValueError(f"the Model {observed.key} is invalid: {observed.invalid}")
    key, uid = observed.key, observed.uid
    catalog = catalog_of(key, uid, observed.spec)
    pool_key_data = base64.b64encode(pool_key(master, uid).encode()).decode()
    selector = selector_of(key, uid)
    service = {
        "type": "ClusterIP",
        "selector": selector,
        "ports": [{"name": "http", "port": HTTP_PORT, "targetPort": "http"}],
    }
    workload = deployment_spec(owned_name(MODEL.name, key.name), _labels(key, uid), selector, observed.spec, server)
    return Plan(
        objects=(
            _object(CONFIG_MAP, observed, {"data": {CATALOG_FILE: catalog.to_json()}}),
            _object(SECRET, observed, {"type": "Opaque", "data": {POOL_KEY_FILE: pool_key_data}}),
            _object(SERVICE, observed, {"spec": service}),
            _object(DEPLOYMENT, observed, {"spec": workload}),
        ),
        catalog=catalog,
    )
