"""The cluster's own certificate authority and one certificate a component, made with the `openssl` command.

Runs in the supervisor before anything else starts. P-256 keys: ten certificates take a quarter of a second.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tandem_devcluster.errors import DevclusterError

_DAYS = "365"
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", _DAYS]


@dataclass(frozen=True)
class Certificate:
    """One certificate: `organization` is the Kubernetes group, `name` the user; `hosts` makes it a server's."""

    file: str
    name: str
    organization: str = ""
    hosts: tuple[str, ...] = ()


def control_plane(api_hosts: tuple[str, ...]) -> list[Certificate]:
    """What a control plane needs; `api_hosts` are openssl's alternative names (`IP:...`, `DNS:...`)."""
    return [
        Certificate("apiserver", "kube-apiserver", hosts=api_hosts),
        Certificate("admin", "admin", "system:masters"),
        Certificate("controller-manager", "system:kube-controller-manager"),
        Certificate("scheduler", "system:kube-scheduler"),
    ]


def node(name: str, address: str) -> list[Certificate]:
    """What a node adds: the kubelet as client and as server, its caller, the service proxy and the DNS server."""
    return [
        Certificate("apiserver-kubelet", "apiserver-kubelet-client", "system:masters"),
        Certificate("kubelet", f"system:node:{name}", "system:nodes"),
        Certificate("kubelet-serving", f"system:node:{name}", "system:nodes", (f"IP:{address}", f"DNS:{name}")),
        Certificate("kube-proxy", "system:kube-proxy"),
        Certificate("dns", "system:coredns"),
    ]


def request(folder: Path, certificate: Certificate) -> list[str]:
    """The openssl arguments that make one certificate and its key, signed by the folder's authority."""
    organization = f"/O={certificate.organization}" if certificate.organization else ""
    extensions = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={'serverAuth' if certificate.hosts else 'clientAuth'}",
    ]
    if certificate.hosts:
        extensions.append(f"subjectAltName={','.join(certificate.hosts)}")
    return [
        *["req", "-x509", *_KEY, "-CA", f"{folder}/ca.crt", "-CAkey", f"{folder}/ca.key"],
        *["-keyout", f"{folder}/{certificate.file}.key", "-out", f"{folder}/{certificate.file}.crt"],
        *["-subj", f"{organization}/CN={certificate.name}"],
        *[argument for extension in extensions for argument in ("-addext", extension)],
    ]


def make(folder: Path, certificates: list[Certificate]) -> None:
    """Writes authority, service-account key pair and certificates into `folder` (mode 0700)."""
    folder.mkdir(mode=0o700)
    authority = [*_KEY, "-keyout", f"{folder}/ca.key", "-out", f"{folder}/ca.crt", "-subj", "/CN=tandem-devcluster"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    _openssl(["req", "-x509", *authority, *usage])
    _openssl(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{folder}/service-accounts.key"])
    public = ["-pubout", "-out", f"{folder}/service-accounts.pub"]
    _openssl(["ec", "-in", f"{folder}/service-accounts.key", *public])
    for certificate in certificates:
        _openssl(request(folder, certificate))


def _openssl(arguments: list[str]) -> None:
    result = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:]
        raise DevclusterError(f"openssl {arguments[0]} failed ({' '.join(reason)}): OpenSSL 3 is needed")
