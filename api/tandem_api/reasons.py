"""Every condition and every reason that a status may hold, with what it means and what to do about it.

Beside `status` at the end of a reconcile: the operator words the messages, this table fixes the words that programs and
people look up. The reference page is made from it. An entry names no numbers: those stand in the message.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ConditionType:
    """One type of condition. `always`: it stands in every status; otherwise only while it has something to tell."""

    name: str
    meaning: str
    always: bool = False


@dataclass(frozen=True)
class Reason:
    """One reason. `where` lists conditions as `Ready=False`; `advice` is empty where nothing need be done."""

    name: str
    where: tuple[str, ...]
    meaning: str
    advice: str = ""


TYPES = (
    ConditionType(
        "Ready",
        "The summary. True: a request sent now is served or held within bounds. False: it would fail. "
        "Unknown: not observed yet.",
        always=True,
    ),
    ConditionType("Progressing", "Whether pods are on their way to what the spec says.", always=True),
    ConditionType("Loaded", "Of a Model: whether some pod holds it in the memory of its device.", always=True),
    ConditionType("Fits", "Of a Model: whether one copy fits on the device. Absent until a pod has tried."),
    ConditionType("ContextReduced", "Of a Model: each slot has less context than was asked for."),
    ConditionType("AliasConflict", "Of a Model: requests by some alias go to another Model."),
    ConditionType("ModelsHeld", "Of a ModelPool: some Models that name it are not carried out."),
    ConditionType("Degraded", "Requests are served, but not as asked for: a change is held, or pods are stuck."),
    ConditionType("NameConflict", "Objects that are needed exist and belong to somebody else."),
)

_STUCK = ("Ready=False", "Loaded=False", "Progressing=False", "Degraded=True")
_ON_ITS_WAY = ("Ready=False", "Loaded=False", "Progressing=True")
_HELD = ("Ready=False", "Progressing=False", "Degraded=True")
_MODEL_HELD = ("Ready=False", "Loaded=False", "Progressing=False", "Degraded=True")

REASONS = (
    Reason("Loaded", ("Ready=True", "Loaded=True", "Fits=True"), "Pods hold the model and take requests."),
    Reason("Serving", ("Ready=True",), "Of a ModelPool: pods take requests."),
    Reason(
        "Unloaded",
        ("Ready=True", *_ON_ITS_WAY),
        "The pods run, and none of them holds the model; the next request loads it.",
        "If the first request must not wait: residency Pinned, or copies.min 1.",
    ),
    Reason(
        "Loading",
        ("Ready=True", *_ON_ITS_WAY),
        "A pod downloads or reads the weights; the message says how far it is.",
        "Wait. With Ready=True, requests wait in the queue meanwhile.",
    ),
    Reason(
        "Starting", _ON_ITS_WAY, "A pod waits for the scheduler, or its server has not reported yet.", "Wait a moment."
    ),
    Reason(
        "CatalogNotRead",
        _ON_ITS_WAY,
        "The pods have not read the catalog that names the model yet.",
        "Wait some seconds. If it stays, look for errors in the log of the pod.",
    ),
    Reason("RollingOut", ("Progressing=True",), "Pods are being made or replaced."),
    Reason("Complete", ("Progressing=False",), "All pods run as the spec says."),
    Reason("Draining", _ON_ITS_WAY, "A pod finishes its last requests and ends."),
    Reason(
        "ScaledToZero",
        ("Ready=False",),
        "No pods are asked for, so requests are refused.",
        "Set replicas to 1 or more.",
    ),
    Reason("NoPods", ("Loaded=False",), "There is no pod that could hold the model.", "See Ready."),
    Reason("NotObserved", ("Ready=Unknown",), "The operator has seen no pod yet.", "Wait a moment."),
    Reason(
        "NotReported",
        ("Loaded=Unknown",),
        "A pod is ready, but the operator could not read its report. Requests are not concerned.",
        "Look whether a NetworkPolicy keeps the operator from port 8081 of the pod.",
    ),
    Reason(
        "Invalid",
        _MODEL_HELD,
        "The spec cannot be read as a valid one: it was stored under an older CRD. Nothing is changed meanwhile.",
        "Correct the fields that the message names.",
    ),
    Reason(
        "Unsupported",
        _MODEL_HELD,
        "The spec asks for something that this version knows and cannot do yet.",
        "Do what the message says instead, or install a version that can.",
    ),
    Reason(
        "PoolNotFound",
        _HELD,
        "No ModelPool of this name is in the Model's namespace.",
        "Create the ModelPool, or correct spec.pool.",
    ),
    Reason(
        "PoolNotReady",
        _MODEL_HELD,
        "The ModelPool has no pods, for the reason that the message quotes.",
        "Look at the ModelPool: kubectl describe modelpool NAME.",
    ),
    Reason(
        "VolumeNotInPool",
        _MODEL_HELD,
        "The pvc:// source names a claim that the ModelPool does not list. No pod is replaced for it.",
        "Have the claim added to spec.volumes of the ModelPool.",
    ),
    Reason(
        "FileRootNotInPool",
        _MODEL_HELD,
        "The file:// source lies below none of the folders that the ModelPool lists.",
        "Have the folder added to spec.fileRoots of the ModelPool, or move the weights.",
    ),
    Reason(
        "SecretNotFound",
        _MODEL_HELD,
        "The namespace has no Secret of this name with the label of model credentials.",
        'Create it, or label it: kubectl label secret NAME tandem.dev/model-credentials="true".',
    ),
    Reason(
        "OverlayRefused",
        _HELD,
        "The ModelPool's podTemplate asks for what the installation does not allow, such as a hostPath.",
        "Leave it out, or let an administrator allow it by the chart value pools.podTemplateAllows.",
    ),
    Reason("ModelsHeld", ("ModelsHeld=True",), "Some Models of the pool are held.", "Look at their own conditions."),
    Reason(
        "NameConflict",
        _HELD,
        "Objects that are needed exist and belong to somebody else; they are left untouched.",
        "Rename or delete the objects that the message names, or choose another name for the Model or ModelPool.",
    ),
    Reason("NameTaken", ("NameConflict=True",), "As the reason NameConflict.", "See NameConflict."),
    Reason(
        "AliasTaken",
        ("AliasConflict=True",),
        "An alias is the name of a Model of the namespace, or an alias of an older one, and leads there.",
        "Take the alias out, here or there.",
    ),
    Reason(
        "Refused",
        _HELD,
        "The API server refuses an object that is needed, in the words of the message. It is tried again.",
        "Do what the message says; often a quota or an admission policy stands in the way.",
    ),
    Reason(
        "PodsForbidden",
        _HELD,
        "The cluster refuses to create the pods.",
        "Raise the quota or change the policy that the message names.",
    ),
    Reason(
        "DoesNotFit",
        (*_STUCK, "Fits=False"),
        "The model does not fit on the device, even with the least context that was asked for.",
        "Lower context.minLength or slots, choose a smaller model, or give the pod more memory.",
    ),
    Reason(
        "LoadFailed",
        _STUCK,
        "A pod could not load the model; the message ends with its words.",
        "Correct what they name: mostly source, revision, secretRef or the folder's content.",
    ),
    Reason(
        "Unschedulable",
        _STUCK,
        "No node can take the pod; the message holds the scheduler's words.",
        "Free or add a node with as many GPUs, processors and as much memory, or ask for less in resources.",
    ),
    Reason(
        "ImagePullFailed",
        _STUCK,
        "The image of the server cannot be had.",
        "Correct the image's name, or give the namespace credentials for its registry.",
    ),
    Reason(
        "ContainerNotCreated",
        _STUCK,
        "The node cannot create the container; often a Secret, ConfigMap or claim is missing.",
        "Do what the message says.",
    ),
    Reason(
        "CrashLooping",
        _STUCK,
        "The server in the pod ended by itself, again and again.",
        "Read its last words in the message, or kubectl logs --previous.",
    ),
    Reason(
        "OutOfMemory",
        _STUCK,
        "The pod took more of the node's memory than it may have, and was ended.",
        "Raise resources.memory.",
    ),
    Reason(
        "ModelLimit",
        ("ContextReduced=True",),
        "The model was made for no more context than it has been given.",
        "Lower context.length.",
    ),
    Reason(
        "MemoryShort",
        ("ContextReduced=True",),
        "As many slots with as much context do not fit in memory.",
        "Lower slots or context.length, or give the pod more memory. To have it refused instead: whenShort Fail.",
    ),
)


def known(condition: str, status: str, reason: str) -> bool:
    """Whether the table has the reason for this condition and status, as in `known("Ready", "True", "Loaded")`."""
    return any(one.name == reason and f"{condition}={status}" in one.where for one in REASONS)
