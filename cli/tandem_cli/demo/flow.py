"""The demo's steps in order: cluster, chart, Models, `kubectl get models`, streamed answers, what to do next.

Everything that a person could type is shown as the command it is; the rest are sentences.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from tandem_cli.demo import assets
from tandem_cli.demo.choose import choose
from tandem_cli.demo.clusters import MODELS_CLAIM, RESTRICTED, SYSTEM_NAMESPACE, DemoCluster
from tandem_cli.demo.commands import Kubernetes
from tandem_cli.demo.story import Story
from tandem_cli.demo.talk import talk

EXAMPLES = assets.ROOT / "manifests" / "examples"
CHART = assets.ROOT / "charts" / "tandem"
CODE_PROMPTS = ("def read_lines(path):", 'class Queue:\n    """A first-in, first-out queue."""\n')
CHAT_PROMPTS = ("Say in one sentence what Kubernetes is.", "Write a haiku about queues.")
LOAD_SECONDS = 600


def up(story: Story, kind: str, hub_source: str | None) -> None:
    """Runs the whole demo; the cluster stays. Raises DemoError with what to do."""
    cluster = choose(kind)
    story.head(f"1. {cluster.title}")
    on_host = hub_source if not cluster.hub_from_pods else None
    models = assets.model_folder(story, on_host)
    kubernetes = cluster.start(story)
    story.head("2. Tandem's chart")
    install(kubernetes, cluster, story, models)
    story.head("3. Two Models")
    names = apply_models(kubernetes, cluster, story, hub_source)
    wait_ready(kubernetes, cluster.namespace, names, story)
    show(kubernetes, story, "get", "models", *_in(cluster))
    story.head("4. Clients inside the cluster")
    talk(kubernetes, cluster, story, names, CHAT_PROMPTS if hub_source else CODE_PROMPTS)
    show(kubernetes, story, "get", "models", *_in(cluster))
    story.tell("done; the cluster stays up", style="green")
    next_steps(kubernetes, cluster, story, names)


def down(story: Story, kind: str) -> None:
    """Ends what `up` began."""
    choose(kind).stop(story)
    story.tell("nothing of the demo runs any more")


def install(kubernetes: Kubernetes, cluster: DemoCluster, story: Story, models: Path) -> None:
    """Namespaces under Pod Security `restricted`, volumes, and the chart."""
    for name in (SYSTEM_NAMESPACE, cluster.namespace):
        kubernetes.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}])
    cluster.place(kubernetes, story, models)
    values = {"runtime": cluster.runtime(), "gateway": {"defaultNamespace": cluster.namespace}}
    story.command(f"helm upgrade --install tandem charts/tandem --namespace {SYSTEM_NAMESPACE} --values -")
    arguments = ["upgrade", "--install", "tandem", str(CHART), "--namespace", SYSTEM_NAMESPACE, "--values", "-"]
    kubernetes.helm(*arguments, stdin=json.dumps(values))
    for deployment in ("tandem-operator", "tandem-gateway"):
        story.wait(f"{deployment} starts", partial(_rolled_out, kubernetes, deployment), 180)


def _rolled_out(kubernetes: Kubernetes, name: str) -> tuple[bool, str]:
    deployment = kubernetes.get("-n", SYSTEM_NAMESPACE, "deployment", name)
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status", {})
    current = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    ready = status.get("readyReplicas", 0) if current else 0
    updated = status.get("updatedReplicas", 0) if current else 0
    done = ready >= wanted and updated >= wanted and status.get("replicas", 0) == wanted
    return done, f"{ready} of {wanted} ready"


def apply_models(kubernetes: Kubernetes, cluster: DemoCluster, story: Story, hub_source: str | None) -> list[str]:
    """`kubectl apply` of the example Models; the names, the chat model first."""
    chat = assets.CHAT_MODEL
    if hub_source:
        chat = assets.hub_name(hub_source)
        source = hub_source if cluster.hub_from_pods else f"pvc://{MODELS_CLAIM}/{chat}"
        kubernetes.apply([_hub_model(chat, source, cluster.namespace)])
        story.tell(f"Model {chat} applied, source {source}")
    else:
        show(kubernetes, story, "apply", "-f", f"manifests/examples/{chat}.yaml", *_in(cluster))
    show(kubernetes, story, "apply", "-f", f"manifests/examples/{assets.EMBEDDING_MODEL}.yaml", *_in(cluster))
    return [chat, assets.EMBEDDING_MODEL]


def _hub_model(name: str, source: str, namespace: str) -> dict[str, Any]:
    spec = {"source": source, "device": "CPU", "slots": 2, "context": {"length": 4096}}
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "Model",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**spec, "resources": {"cpu": "1", "memory": "12Gi"}},
    }


def wait_ready(kubernetes: Kubernetes, namespace: str, names: list[str], story: Story) -> None:
    """Waits until each Model is ready and loaded; shows its Ready condition's sentence meanwhile."""
    for name in names:
        story.wait(f"Model {name}", partial(_ready, kubernetes, namespace, name), LOAD_SECONDS)


def _ready(kubernetes: Kubernetes, namespace: str, name: str) -> tuple[bool, str]:
    model = kubernetes.get("-n", namespace, "model", name)
    conditions = {entry["type"]: entry for entry in model.get("status", {}).get("conditions", [])}
    ready = conditions.get("Ready")
    if ready is None:
        return False, "not yet seen by the operator"
    done = all(conditions.get(kind, {}).get("status") == "True" for kind in ("Ready", "Loaded"))
    return done, f"{ready['reason']}: {ready['message']}"


def show(kubernetes: Kubernetes, story: Story, *arguments: str) -> None:
    """Runs a kubectl command as a person would, showing it and what it prints."""
    story.command("kubectl " + " ".join(arguments))
    real = [str(assets.ROOT / part) if part.startswith("manifests/") else part for part in arguments]
    story.plain(kubernetes.kubectl(*real))


def _in(cluster: DemoCluster) -> tuple[str, ...]:
    return () if cluster.namespace == "default" else ("-n", cluster.namespace)


def next_steps(kubernetes: Kubernetes, cluster: DemoCluster, story: Story, names: list[str]) -> None:
    """Prints the commands with which a person goes on by hand."""
    service = kubernetes.get("-n", SYSTEM_NAMESPACE, "service", "tandem-gateway")
    story.head("Go on by hand")
    if hint := cluster.shell_hint():
        story.command(hint)
    story.command(" ".join(["kubectl", "get", "models", "-o", "wide", *_in(cluster)]))
    story.command(" ".join(["kubectl", "describe", "model", names[0], *_in(cluster)]))
    story.command(" ".join(["kubectl", "edit", "model", names[0], *_in(cluster)]))
    story.command(f"kubectl logs -n {SYSTEM_NAMESPACE} deployment/tandem-operator")
    if cluster.hub_from_pods:
        story.command(f"kubectl port-forward -n {SYSTEM_NAMESPACE} service/tandem-gateway 8080:80 &")
        address = "localhost:8080"
    else:
        address = service["spec"]["clusterIP"]
    body = json.dumps({"model": names[0], "messages": [{"role": "user", "content": "import os\n\ndef "}]})
    story.command(f"curl -N http://{address}/api/chat -d '{body}'")
    story.command("make demo-down")
