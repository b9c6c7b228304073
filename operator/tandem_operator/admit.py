"""May a Model, or a pool, be carried out as it is written? Pure; between `observe` and `plan`.

What may not is held: nothing of it is changed, what it had before goes on, and its status says what to do.
"""

from dataclasses import dataclass

from tandem_api.names import CREDENTIALS_LABEL, CREDENTIALS_USABLE
from tandem_api.unsupported import unsupported, unsupported_pool
from tandem_operator.config import Config
from tandem_operator.observe import Member, Observed, Pool
from tandem_operator.overlay import faults
from tandem_operator.pool_of_one import claim_of


@dataclass(frozen=True)
class Hold:
    """Why something is not carried out: a reason for conditions, and a sentence that says what to do."""

    reason: str
    message: str


def hold_of_pool(pool: Pool, config: Config) -> Hold | None:
    """Why a ModelPool is held; None when it may be carried out."""
    if pool.spec is None:
        return Hold("Invalid", f"The {pool.key.kind} cannot be carried out as written: {pool.invalid}")
    if asked := unsupported_pool(pool.spec):
        return Hold("Unsupported", asked)
    wrong = faults(pool.spec.pod_template, config.pod_template_allows)
    if wrong:
        return Hold(
            "OverlayRefused",
            f"spec.podTemplate sets what this installation does not allow: {'; '.join(wrong)}. Leave it out, or let "
            "the installation's administrator allow it (chart value pools.podTemplateAllows).",
        )
    return None


def hold_of_member(member: Member, pool: Pool) -> Hold | None:
    """Why a Model of a pool that is there is held; None when it may be carried out."""
    spec = member.spec
    if spec is None:
        return Hold("Invalid", f"The Model cannot be served as written: {member.invalid}")
    if asked := unsupported(spec):
        return Hold("Unsupported", asked)
    return _source_hold(member, pool) or _secret_hold(member, pool)


def _source_hold(member: Member, pool: Pool) -> Hold | None:
    if member.spec is None or pool.spec is None:
        return None
    source, name = member.spec.source, pool.key.name
    claim = claim_of(source)
    claims = [volume.claim for volume in pool.spec.volumes]
    if claim is not None and claim not in claims:
        listed = f"it lists {', '.join(claims)}" if claims else "it lists none"
        return Hold(
            "VolumeNotInPool",
            f"The pods of ModelPool {name} do not mount the claim {claim}: {listed}. Add it to its spec.volumes.",
        )
    if not source.startswith("file://"):
        return None
    path, roots = source.removeprefix("file://"), pool.spec.file_roots
    if any(path == root or path.startswith(f"{root}/") for root in roots):
        return None
    listed = f"it lists {', '.join(roots)}" if roots else "it lists none"
    return Hold(
        "FileRootNotInPool",
        f"{path} does not lie below one of the folders from which ModelPool {name} lets models be read: {listed}. "
        "Add it to its spec.fileRoots.",
    )


def _secret_hold(member: Member, pool: Pool) -> Hold | None:
    reference = member.spec.secret_ref if member.spec is not None else None
    if reference is None or reference.name in pool.secrets:
        return None
    return Hold(
        "SecretNotFound",
        f"There is no Secret {reference.name} with the label {CREDENTIALS_LABEL}={CREDENTIALS_USABLE} in namespace "
        f"{member.key.namespace}. Make it, or set the label on it; Secrets without that label are not read.",
    )


def hold_of(observed: Observed) -> Hold | None:
    """Why a Model is held; None when it may be carried out."""
    member, pool = observed.member, observed.pool
    if pool is not None:
        return hold_of_member(member, pool)
    name = member.spec.pool if member.spec is not None else ""
    there = f"there are {', '.join(observed.pools)}" if observed.pools else "there is none at all"
    return Hold(
        "PoolNotFound",
        f"There is no ModelPool {name} in namespace {member.key.namespace}; {there}. Create it, or correct spec.pool.",
    )
