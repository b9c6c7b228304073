"""How the operator proves to the API server who it is: in-cluster, or by kubeconfig.

One `ConnectionInfo` serves both kopf's watches and our own client. The projected ServiceAccount token rotates (about
every 48 minutes): kopf logs in again after a 401, our client re-reads the file each minute and after a 401.
"""

import os
from pathlib import Path

import kopf

_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_FILE = _FOLDER / "token"


def in_cluster() -> bool:
    """Whether the process runs in a pod with a ServiceAccount; an explicit KUBECONFIG comes first."""
    return not os.environ.get("KUBECONFIG") and TOKEN_FILE.exists() and "KUBERNETES_SERVICE_HOST" in os.environ


def token_file() -> Path | None:
    """The file whose token is to be re-read, or None with a kubeconfig."""
    return TOKEN_FILE if in_cluster() else None


def connection(settings: kopf.OperatorSettings) -> kopf.ConnectionInfo:
    """Where the API server is and how to speak with it; raises LoginError when nothing is configured."""
    if not in_cluster():
        info = kopf.login_with_kubeconfig(settings=settings)
        if info is None:
            raise kopf.LoginError("no ServiceAccount is mounted, and neither KUBECONFIG nor ~/.kube/config exists")
        return info
    # By address, not by the name kubernetes.default.svc: the operator must work while the cluster's DNS does not.
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return kopf.ConnectionInfo(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca_path=str(_FOLDER / "ca.crt"),
        token=TOKEN_FILE.read_text().strip(),
        default_namespace=(_FOLDER / "namespace").read_text().strip(),
    )
