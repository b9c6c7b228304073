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
    ConditionType("Loaded", "Whether some pod holds the model in the memory of its device.", always=True),
    ConditionType("Progressing", "Whether pods are on their way to what the spec says.", always=True),
    ConditionType("Fits", "Whether the weights and the least context that was asked for fit on the device."),
    ConditionType("ContextReduced", "Each slot has less context than was asked for."),
    ConditionType("Degraded", "Requests are served, by less than was asked for or not in the way that was asked for."),
    ConditionType("NameConflict", "An object of somebody else has a name that an owned object needs."),
    ConditionType("AliasConflict", "Some alias leads to another Model."),
)

_FAILING = ("Ready=False", "Loaded=False", "Progressing=False")
_ON_ITS_WAY = ("Ready=False", "Loaded=False", "Progressing=True")
_REFUSED = ("Ready=False", "Progressing=False")

REASONS = (
    Reason("Loaded", ("Ready=True", "Loaded=True"), "Pods hold the model and take requests."),
    Reason(
        "Unloaded",
        ("Ready=True", "Ready=False", "Loaded=False"),
        "The pods run and no pod holds the model; the next request loads it.",
        "Set keepAlive to -1 or residency to Pinned if the first request must not wait.",
    ),
    Reason(
        "ScaledToZero",
        ("Ready=True", "Ready=False", "Loaded=False"),
        "No pods are asked for. True: the gateway holds requests until one has started.",
        "If False: set replicas to 1 or more.",
    ),
    Reason(
        "Starting", _ON_ITS_WAY, "A pod is scheduled or its server starts; it has not reported yet.", "Wait a moment."
    ),
    Reason(
        "Loading",
        ("Ready=True", *_ON_ITS_WAY),
        "A pod reads or downloads the weights; the message says how far it is.",
        "Wait. With Ready=True, requests wait in the queue meanwhile.",
    ),
    Reason(
        "Draining",
        ("Ready=False", "Loaded=False", "Progressing=True"),
        "The only pod finishes its last requests and ends.",
    ),
    Reason("RollingOut", ("Progressing=True",), "Pods are being made or replaced."),
    Reason("Complete", ("Progressing=False",), "All pods run as the spec says."),
    Reason("NoPods", ("Loaded=False",), "There is no pod that could hold the model."),
    Reason("NotObserved", ("Ready=Unknown", "Loaded=Unknown"), "The operator has seen no pod yet.", "Wait a moment."),
    Reason(
        "NotReported",
        ("Loaded=Unknown",),
        "A pod is ready, but the operator could not read its report. Requests are not concerned.",
        "Look whether a NetworkPolicy keeps the operator from port 8081 of the pod.",
    ),
    Reason(
        "CatalogNotRead",
        ("Progressing=True", "Progressing=False"),
        "A pod still works with the settings from before the last change.",
        "Wait some seconds. If it stays: look for errors in the log of the pod.",
    ),
    Reason(
        "Invalid",
        _REFUSED,
        "The spec cannot be read as a valid one; it was stored under older rules. Nothing is changed meanwhile.",
        "Correct the fields that the message names.",
    ),
    Reason(
        "Unsupported",
        _REFUSED,
        "The spec asks for something that this version knows and cannot do yet.",
        "Take out the field that the message names, or install a version that can.",
    ),
    Reason(
        "NameConflict",
        _REFUSED,
        "Objects that are needed exist and belong to somebody else; they are left untouched.",
        "Rename or delete the objects that the message names, or give the Model another name.",
    ),
    Reason("NameTaken", ("NameConflict=True",), "As the reason NameConflict.", "See NameConflict."),
    Reason(
        "AliasConflict",
        ("AliasConflict=True",),
        "An alias is the name of a Model of the namespace, or an alias of an older one. It does not lead here.",
        "Take the alias out, here or there.",
    ),
    Reason(
        "Refused",
        _REFUSED,
        "The API server refuses an object that is needed, in the words of the message. It is tried again.",
        "Do what the message says; often a quota or an admission policy stands in the way.",
    ),
    Reason(
        "PodsForbidden",
        _REFUSED,
        "The cluster refuses to create the pods.",
        "Raise the quota or change the policy that the message names.",
    ),
    Reason(
        "PoolNotFound",
        ("Ready=False",),
        "No ModelPool of this name is in the Model's namespace.",
        "Create the ModelPool, or correct or leave out spec.pool.",
    ),
    Reason(
        "VolumeNotInPool",
        ("Ready=False",),
        "The pvc:// source names a claim that the ModelPool does not list. No pod is changed for it.",
        "Have the claim added to spec.volumes of the ModelPool.",
    ),
    Reason(
        "FileRootNotInPool",
        ("Ready=False",),
        "The file:// source lies below none of the folders that the ModelPool lists.",
        "Have the folder added to spec.fileRoots of the ModelPool, or move the weights.",
    ),
    Reason(
        "SecretNotFound",
        ("Ready=False",),
        "No Secret of this name with the label of model credentials is in the namespace.",
        'Create it, or label it: kubectl label secret NAME tandem.dev/model-credentials="true".',
    ),
    Reason(
        "OverlayRefused",
        _REFUSED,
        "The ModelPool's podTemplate asks for what the installation does not allow, such as a hostPath.",
        "Take it out, or ask for the permission in the values of the installation.",
    ),
    Reason(
        "DoesNotFit",
        (*_FAILING, "Fits=False"),
        "The model does not fit on the device, even with the least context that was asked for.",
        "Lower context.minLength or slots, choose a quantization, or give the pod more memory.",
    ),
    Reason(
        "LoadFailed",
        _FAILING,
        "A pod could not load the model; the message ends with its words.",
        "Correct what they name: mostly source, revision, secretRef or the folder's content.",
    ),
    Reason(
        "Unschedulable",
        _FAILING,
        "No node can take the pod; the message holds the scheduler's words.",
        "Free or add a node with as many GPUs, processors and as much memory, or ask for less in resources.",
    ),
    Reason(
        "ImagePullFailed",
        _FAILING,
        "The image of the server cannot be had.",
        "Correct the image's name, or give the namespace credentials for its registry.",
    ),
    Reason(
        "ContainerNotCreated",
        _FAILING,
        "The node cannot create the container; often a Secret, ConfigMap or claim is missing.",
        "Do what the message says.",
    ),
    Reason(
        "CrashLooping",
        _FAILING,
        "The server in the pod ended by itself, again and again.",
        "Read its last words in the message, or kubectl logs --previous.",
    ),
    Reason(
        "OutOfMemory",
        _FAILING,
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
