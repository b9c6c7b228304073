"""Second step of a reconcile: what should exist for a pool. Pure: equal inputs give equal objects, no I/O.

Every object bears a digest of itself. A live object with another digest is out of date; one with the same digest
that lacks something desired was changed by somebody. Neither needs the operator's memory, so a restart writes nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic_core import to_json

from tandem_api.catalog import Catalog
from tandem_api.keys import pool_key
from tandem_api.names import (
    API_VERSION,
    CATALOG_FILE,
    COMPONENT_LABEL,
    CREDENTIALS_LABEL,
    CREDENTIALS_OWN,
    HTTP_PORT,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    POOL_KEY_FILE,
    POOL_KIND_LABEL,
    POOL_LABEL,
    POOL_UID_LABEL,
    SERVER_COMPONENT,
    TEMPLATE_HASH_ANNOTATION,
)
from tandem_operator.admit import Hold
from tandem_operator.catalog_of_pool import catalog_of, listed
from tandem_operator.config import Config
from tandem_operator.credentials_of_pool import digest, gathered
from tandem_operator.guards import budget_spec, network_policy_spec
from tandem_operator.kinds import (
    BUDGET,
    CONFIG_MAP,
    DEPLOYMENT,
    NETWORK_POLICY,
    SECRET,
    SERVICE,
    Key,
    Kind,
    Obj,
    name_of,
)
from tandem_operator.observe import Pool
from tandem_operator.pods import deployment_spec


@dataclass(frozen=True)
class Desired:
    """One object that should exist."""

    kind: Kind
    obj: Obj


@dataclass(frozen=True)
class Plan:
    """What should exist for a pool, in the order of creation. `catalog` is what its pods should have read."""

    objects: tuple[Desired, ...] = ()
    catalog: Catalog | None = None

    @property
    def names(self) -> set[tuple[Kind, str]]:
        """Kind and name of each object."""
        return {(one.kind, name_of(one.obj)) for one in self.objects}


def selector_of(pool: Pool) -> dict[str, str]:
    """Labels that the pods of this very pool have, and those of an earlier one of the same name have not."""
    return {POOL_KIND_LABEL: pool.key.kind, POOL_LABEL: pool.key.name, POOL_UID_LABEL: pool.uid}


def _labels(pool: Pool) -> dict[str, str]:
    return {MANAGED_BY_LABEL: MANAGED_BY, COMPONENT_LABEL: SERVER_COMPONENT, **selector_of(pool)}


def _object(kind: Kind, pool: Pool, content: Obj, suffix: str = "") -> Desired:
    owner = {
        "apiVersion": API_VERSION,
        "kind": pool.key.kind,
        "name": pool.key.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    labels = _labels(pool) | ({CREDENTIALS_LABEL: CREDENTIALS_OWN} if kind == SECRET else {})
    metadata: Obj = {
        "name": f"{pool.name}{suffix}",
        "namespace": pool.key.namespace,
        "labels": labels,
        "ownerReferences": [owner],
    }
    obj: Obj = {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **content}
    metadata["annotations"] = {TEMPLATE_HASH_ANNOTATION: hashlib.sha256(to_json(obj)).hexdigest()[:16]}
    return Desired(kind, obj)


def _opaque(data: dict[str, str]) -> Obj:
    return {"type": "Opaque", "data": data}


def plan(pool: Pool, holds: Mapping[Key, Hold], config: Config, master: bytes) -> Plan:
    """What should exist for a valid pool whose Models `holds` are held. Raises ValueError for an invalid one."""
    if pool.spec is None:
        raise ValueError(f"the {pool.key} is invalid: {pool.invalid}")
    entries, members = listed(pool, holds)
    data = gathered(pool, members)
    catalog = catalog_of(pool, entries, members, digest(data, master))
    selector = selector_of(pool)
    service = {
        "type": "ClusterIP",
        "selector": selector,
        "ports": [{"name": "http", "port": HTTP_PORT, "targetPort": "http"}],
    }
    key = base64.b64encode(pool_key(master, pool.uid).encode()).decode()
    objects = [
        _object(CONFIG_MAP, pool, {"data": {CATALOG_FILE: catalog.to_json()}}),
        _object(SECRET, pool, _opaque({POOL_KEY_FILE: key})),
    ]
    if data:
        objects.append(_object(SECRET, pool, _opaque(data), "-credentials"))
    objects.append(_object(SERVICE, pool, {"spec": service}))
    if config.network_policy.enabled and config.install_namespace:
        policy = network_policy_spec(selector, config.install_namespace, config.network_policy)
        objects.append(_object(NETWORK_POLICY, pool, {"spec": policy}))
    objects.append(_object(BUDGET, pool, {"spec": budget_spec(selector)}))
    workload = deployment_spec(pool, _labels(pool), selector, config.server)
    objects.append(_object(DEPLOYMENT, pool, {"spec": workload}))
    return Plan(tuple(objects), catalog)
