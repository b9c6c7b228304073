"""Makes what is made from the types and the chart: `python tools/generate.py [--helm HELM] [--check]`.

types of tandem_api -> the CRDs as templates of the chart -> `helm template` -> manifests/tandem.yaml, and -> the
reference page docs/reference.md. All are committed; `--check` writes nothing and fails when they are not as they would
be made.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tandem_api.crd import KINDS, CustomKind, crd_yaml
from tandem_api.reference import reference

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "tandem"
CRD_TEMPLATES = {kind: CHART / "templates" / f"crd-{kind.plural}.yaml" for kind in KINDS}
MANIFEST = ROOT / "manifests" / "tandem.yaml"
REFERENCE = ROOT / "docs" / "reference.md"
NAMESPACE = "tandem-system"

_HEADER = f"""\
# Tandem as plain YAML, made from charts/tandem by `make generate`; do not edit.
#
# It needs a Secret that no file should hold, made once:
#   kubectl create namespace {NAMESPACE}
#   kubectl -n {NAMESPACE} create secret generic tandem-master --from-literal=key="$(head -c 36 /dev/urandom | base64)"
# Then:
#   kubectl apply --server-side -f manifests/tandem.yaml
---
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
  labels:
    pod-security.kubernetes.io/enforce: restricted
"""


def crd_template(kind: CustomKind) -> str:
    """The CRD as a chart template: it can be left out, and stays when the release is removed."""
    text = crd_yaml(kind)
    if "{{" in text:
        raise ValueError("the CRD contains {{, which helm would read as a template")
    marker = "metadata:\n"
    kept = marker + "  annotations:\n    helm.sh/resource-policy: keep\n"
    return "{{- if .Values.crds.install }}\n" + text.replace(marker, kept, 1) + "{{- end }}\n"


def manifest(helm: str) -> str:
    """The chart rendered with its defaults and a master secret that exists already."""
    command = [helm, "template", "tandem", str(CHART), "--namespace", NAMESPACE]
    # The version that charts may ask for must not depend on how helm was built.
    command += ["--kube-version", "1.34.0", "--set", "masterSecret.existingSecret=tandem-master"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if result.returncode != 0:
        raise RuntimeError(f"helm template failed: {result.stderr.strip()}")
    return _HEADER + result.stdout


def find_helm(given: str | None) -> str:
    """The helm program: as given, by $HELM, on the PATH, or built by the development cluster's toolchain."""
    found = given or os.environ.get("HELM") or shutil.which("helm")
    if found:
        return found
    from tandem_devcluster.progress import Progress
    from tandem_devcluster.toolchain import provide

    return str(provide("helm", Progress()))


def main() -> int:
    """Writes or checks; exit status 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--helm", help="the helm program")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when something would change")
    options = parser.parse_args()
    helm = find_helm(options.helm)
    stale: list[Path] = []
    # In this order: the manifest is rendered from the chart with the CRD in it.
    making: list[tuple[Path, Callable[[], str]]] = [
        (path, partial(crd_template, kind)) for kind, path in CRD_TEMPLATES.items()
    ]
    for path, make in [*making, (MANIFEST, partial(manifest, helm)), (REFERENCE, reference)]:
        text = make()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is out of date: run make generate' if options.check else 'written'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
