"""What is the matter with one pod, in a word and in a sentence. Pure; a part of `status`.

Reads what Kubernetes says of the pod and what the pod reports of itself. Each sentence names the pod, gives the
numbers that are known, and where a person can do something says what.
"""

from dataclasses import dataclass

from tandem_api.report import ModelReport, ModelState
from tandem_operator.kinds import Obj
from tandem_operator.observe import PodView
from tandem_operator.pods import CONTAINER

_IMAGE_REASONS = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_LONGEST_QUOTE = 600
UNLOADED_WORDS = "It was unloaded since"


@dataclass(frozen=True)
class Diagnosis:
    """`serving`: requests sent to the pod are answered. `stuck`: it will not get better by waiting alone."""

    reason: str
    message: str
    serving: bool = False
    stuck: bool = False


def human_bytes(number: int) -> str:
    """A number of bytes as `ollama ps` prints it, in powers of 1000: 5.2 MB, 21 GB."""
    value, unit = float(number), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"


def sentence(text: str) -> str:
    """Text that another program wrote, on one line, not too long, with a full stop."""
    line = " ".join(text.split())
    if len(line) > _LONGEST_QUOTE:
        line = "... " + line[-_LONGEST_QUOTE:]
    return line if line.endswith((".", "!", "?")) else f"{line}."


def diagnose(pod: PodView, model: str) -> Diagnosis:
    """The state of one pod with respect to a model it is there for."""
    hindered = _hindered(pod)
    if hindered is not None:
        return hindered
    entry = pod.model(model)
    if entry is not None:
        return _reported(pod, entry)
    if pod.seen.report is not None:
        return Diagnosis("CatalogNotRead", f"Pod {pod.name} has not read the catalog that names the model yet.")
    return _silent(pod)


def diagnose_pod(pod: PodView) -> Diagnosis:
    """The state of one pod, whatever models it holds."""
    hindered = _hindered(pod)
    if hindered is not None:
        return hindered
    if pod.ready:
        return Diagnosis("Serving", f"Pod {pod.name} takes requests.", serving=True)
    failed = [
        entry for entry in (pod.seen.report.models if pod.seen.report else ()) if entry.state == ModelState.FAILED
    ]
    loading = [entry for entry in (pod.seen.report.models if pod.seen.report else ()) if entry.progress is not None]
    if failed:
        told = sentence(failed[0].last_error or "it gave no cause")
        return Diagnosis("LoadFailed", f"Pod {pod.name} could not load {failed[0].name}: {told}", stuck=True)
    if loading:
        return Diagnosis("Loading", f"Pod {pod.name} {progress_of(loading[0])} ({loading[0].name}).")
    return _silent(pod)


def _hindered(pod: PodView) -> Diagnosis | None:
    """What Kubernetes says against a pod."""
    if pod.terminating:
        return Diagnosis("Draining", f"Pod {pod.name} finishes its last requests and ends.")
    return _scheduling(pod) or _container(pod)


def _scheduling(pod: PodView) -> Diagnosis | None:
    scheduled = pod.condition("PodScheduled")
    if scheduled.get("status") != "False" or pod.obj.get("spec", {}).get("nodeName"):
        return None
    told = sentence(str(scheduled.get("message") or "the scheduler gave no cause"))
    return Diagnosis("Unschedulable", f"Pod {pod.name} waits for a node that can take it: {told}", stuck=True)


def _container(pod: PodView) -> Diagnosis | None:
    status = next(
        (one for one in pod.obj.get("status", {}).get("containerStatuses") or [] if one.get("name") == CONTAINER), None
    )
    if status is None:
        return None
    waiting: Obj = status.get("state", {}).get("waiting") or {}
    reason, told = str(waiting.get("reason", "")), sentence(str(waiting.get("message") or "no cause was given"))
    if reason in _IMAGE_REASONS:
        message = f"Pod {pod.name} cannot get its image {status.get('image', '')}: {told}"
        return Diagnosis("ImagePullFailed", message, stuck=True)
    if reason in _CONFIG_REASONS:
        return Diagnosis("ContainerNotCreated", f"The container of pod {pod.name} cannot start: {told}", stuck=True)
    ended: Obj = (status.get("state", {}).get("terminated") or status.get("lastState", {}).get("terminated")) or {}
    if ended and not status.get("ready") and not status.get("state", {}).get("running"):
        return _crashed(pod, ended, int(status.get("restartCount", 0)))
    return None


def _crashed(pod: PodView, ended: Obj, restarts: int) -> Diagnosis:
    times = f"It was restarted {restarts} times." if restarts != 1 else "It was restarted once."
    if ended.get("reason") == "OOMKilled":
        message = f"Pod {pod.name} ran out of memory and was ended by the kernel. {times} Raise spec.resources.memory."
        return Diagnosis("OutOfMemory", message, stuck=True)
    signal, code = ended.get("signal"), ended.get("exitCode")
    how = f"was ended by signal {signal}" if signal else f"ended with exit code {code}"
    told = f" Its last words: {sentence(str(ended['message']))}" if ended.get("message") else ""
    return Diagnosis("CrashLooping", f"The server in pod {pod.name} {how}. {times}{told}", stuck=True)


def _silent(pod: PodView) -> Diagnosis:
    if pod.ready:
        why = f": {sentence(pod.seen.error)}" if pod.seen.error else " yet."
        return Diagnosis("NotReported", f"Pod {pod.name} is ready; its report could not be read{why}", serving=True)
    node = pod.obj.get("spec", {}).get("nodeName")
    if not node:
        return Diagnosis("Starting", f"Pod {pod.name} has been made and waits for the scheduler.")
    if pod.obj.get("status", {}).get("phase") != "Running":
        return Diagnosis("Starting", f"Pod {pod.name} is being started on node {node}.")
    return Diagnosis("Starting", f"The server in pod {pod.name} starts; it has not reported yet.")


def _reported(pod: PodView, entry: ModelReport) -> Diagnosis:
    # A load that is tried again after a failure is told as the failure, until it is loaded or fails in another way.
    retried = entry.state == ModelState.LOADING and entry.last_error and entry.artifact is None
    if entry.state == ModelState.FAILED or retried:
        told = sentence(entry.last_error or "it gave no cause")
        return Diagnosis(
            entry.error_reason or "LoadFailed", f"Pod {pod.name} could not load the model: {told}", stuck=True
        )
    if entry.state == ModelState.LOADING:
        message = f"Pod {pod.name} {progress_of(entry)}."
        if entry.last_error:
            message += f" It had it loaded before: {sentence(entry.last_error)}"
        return Diagnosis("Loading", message, serving=pod.ready)
    if entry.state == ModelState.UNLOADED:
        why = f" {UNLOADED_WORDS} {entry.unloaded_because}." if entry.unloaded_because else ""
        message = f"Pod {pod.name} loads the model with the next request.{why}"
        return Diagnosis("Unloaded", message, serving=pod.ready)
    if not pod.ready:
        return Diagnosis("Starting", f"Pod {pod.name} has loaded the model and is about to take requests.")
    return Diagnosis("Loaded", f"Pod {pod.name} holds the model.", serving=True)


def progress_of(entry: ModelReport) -> str:
    """How far a load is, such as `is reading weights: 45% of 1.2 GB`. No clock in it: an ETA changes by itself."""
    progress = entry.progress
    if progress is None:
        return "loads the model"
    phase = f"is {progress.phase}" if progress.phase else "loads the model"
    if progress.total_bytes:
        return f"{phase}: {progress.fraction:.0%} of {human_bytes(progress.total_bytes)}"
    return f"{phase}: {progress.fraction:.0%}" if progress.fraction else phase
