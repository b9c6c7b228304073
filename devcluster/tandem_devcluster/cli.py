"""The command line: arguments in, one call of `cluster`, a line or two out. Exit codes: 0 done, 1 failed, 2 misused."""

import argparse
import os
import shlex
import sys
from pathlib import Path

from tandem_devcluster import cluster
from tandem_devcluster.errors import DevclusterError
from tandem_devcluster.progress import Progress

PREPARE = "Build what a cluster starts from, once a machine: up does it too, but then its caller waits for minutes."


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    top = argparse.ArgumentParser(prog="tandem_devcluster", description="A real Kubernetes cluster on this machine.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--name", default="dev", help="which cluster (default: dev)")
        return command

    up = add("up", "Start a cluster and wait until it is ready; it runs on after the command.")
    up.add_argument("--node", action="store_true", help="with a node that runs pods (root; one a machine)")
    up.add_argument("--helm", action="store_true", help="put helm beside kubectl")
    up.add_argument("--fake-nodes", type=int, default=0, metavar="N", help="N nodes of kwok, which run nothing")
    up.add_argument("--qps", type=int, default=100, help="API calls a second of controllers and scheduler")
    prepare = commands.add_parser("prepare", help="Build what clusters start from.", description=PREPARE)
    prepare.add_argument("--node", action="store_true", help="for a cluster with a node (root)")
    prepare.add_argument("--helm", action="store_true", help="helm too")
    prepare.add_argument("--fake-nodes", action="store_true", help="kwok too")
    add("down", "End a cluster and remove everything of it.")
    commands.add_parser("status", help="List the clusters.", description="List the clusters.")
    add("env", 'Print the shell lines that point kubectl at a cluster: eval "$(... env)".')
    load = add("load-image", "Bring an image into the node from a docker-archive file.")
    load.add_argument("file", type=Path)
    kubectl = add("kubectl", "Run kubectl against a cluster; its arguments follow after --.")
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Errors are one line on stderr, after the log lines that led to them."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except DevclusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def run(options: argparse.Namespace) -> int:
    """The command itself; raises DevclusterError."""
    if options.command == "up":
        more = {"qps": options.qps, "helm": options.helm, "fake_nodes": options.fake_nodes}
        made = cluster.up(options.name, options.node, Progress(), **more)
        print(f"The cluster '{made.name}' is ready. To use it: {_environment(made)}")
    elif options.command == "prepare":
        cluster.prepare(options.node, Progress(), helm=options.helm, fake_nodes=int(options.fake_nodes))
    elif options.command == "down":
        gone = cluster.down(options.name)
        print(f"The cluster '{options.name}' is gone." if gone else f"There is no cluster '{options.name}'.")
    elif options.command == "status":
        print("\n".join(table(cluster.status())))
    elif options.command == "env":
        print(_environment(cluster.find(options.name)))
    elif options.command == "load-image":
        cluster.load_image(options.name, options.file)
        print(f"{options.file} is in the node of '{options.name}'. Use it with imagePullPolicy: Never.")
    elif options.command == "kubectl":
        found = cluster.find(options.name)
        given = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
        kubectl = str(found.bin_dir / "kubectl")
        os.execve(kubectl, [kubectl, *given], {**os.environ, "KUBECONFIG": str(found.kubeconfig)})  # noqa: S606
    return 0


def table(rows: list[cluster.Status]) -> list[str]:
    """The lines of `status`."""
    lines = [f"{'NAME':<20} {'KIND':<14} {'PHASE':<9} {'PID':<8} {'AGE':<8} DETAIL"]
    for row in rows:
        kind, pid = "node" if row.node else "control-plane", str(row.keeper or "-")
        detail = "its processes are gone: run `down`" if row.phase == "ended" else row.detail.partition("\n")[0]
        lines.append(f"{row.name:<20} {kind:<14} {row.phase:<9} {pid:<8} {age(row.age_s):<8} {detail}".rstrip())
    return lines


def age(seconds: float) -> str:
    """`42s`, `7m`, `3h`, `2d`."""
    for size, letter in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{letter}"
    return f"{seconds:.0f}s"


def _environment(found: cluster.Cluster) -> str:
    kubeconfig, bin_dir = shlex.quote(str(found.kubeconfig)), shlex.quote(str(found.bin_dir))
    return f"export KUBECONFIG={kubeconfig} PATH={bin_dir}:$PATH"
