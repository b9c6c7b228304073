"""What the pods of a pool may load, and which of them loads what at once. Pure; a part of `plan`."""

from collections.abc import Iterable, Mapping

from tandem_api.catalog import ALL_PODS, Catalog, CatalogModel
from tandem_api.fields import Residency
from tandem_api.model import ModelSpec
from tandem_api.placement import preloads
from tandem_api.pool import POOL_KEEP_ALIVE, ModelPoolSpec
from tandem_operator.admit import Hold
from tandem_operator.kinds import Key
from tandem_operator.observe import Member, Pool


def listed(pool: Pool, holds: Mapping[Key, Hold]) -> tuple[list[CatalogModel], list[Member]]:
    """The catalog's models by name, and the Models that they come from.

    A Model that is held stays in the catalog as it stood there: a change that cannot be carried out must not take away
    what was served before.
    """
    before = pool.catalog
    entries, members = [], []
    for member in sorted(pool.members, key=lambda one: one.key.name):
        entry = None
        if member.key not in holds and member.spec is not None and pool.spec is not None:
            entry = _entry(member, member.spec, pool.spec)
        elif before is not None and (found := before.entry(member.key.name)) is not None and found.uid == member.uid:
            entry = found
        if entry is not None:
            entries.append(entry)
            members.append(member)
    return entries, members


def _entry(member: Member, spec: ModelSpec, pool: ModelPoolSpec) -> CatalogModel:
    """The Model's settings, with the pool's where it says nothing itself, and what a pool says that says nothing."""
    context = spec.context.model_copy(update={"when_short": spec.context.when_short or pool.context_policy})
    keep_alive = next((one for one in (spec.keep_alive, pool.keep_alive) if one is not None), POOL_KEEP_ALIVE)
    settled = spec.model_copy(update={"context": context, "keep_alive": keep_alive})
    return CatalogModel.of(member.key.name, member.uid, settled)


def catalog_of(pool: Pool, entries: list[CatalogModel], members: Iterable[Member], credentials: str) -> Catalog:
    """The catalog, stamped with its revision. Generations are left out: they count changes that no pod reads."""
    if pool.shared:
        copies = {(one.key.name, one.uid): _copies(one) for one in members}
        pods = {pod.name: pod.uid for pod in pool.pods if not pod.terminating and _may_run(pod.obj)}
        preload = preloads(copies, pods)
    else:
        preload = {ALL_PODS: [entry.name for entry in entries]}
    return Catalog(
        namespace=pool.key.namespace, pool=pool.key.name, models=entries, preload=preload, credentials=credentials
    ).with_revision()


def _copies(member: Member) -> int:
    spec = member.spec
    if spec is None:
        return 0
    least = spec.copies.min if spec.copies is not None else 0
    return max(1, least) if spec.residency == Residency.PINNED else least


def _may_run(pod: Mapping[str, Mapping[str, str]]) -> bool:
    return pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
