"""The two objects that protect a pool's pods: who may reach them, and how many may be evicted at once. Pure.

Parts of `plan`. The NetworkPolicy is the second fence; the first is the pool key that every port but health asks for.
"""

from tandem_api.names import HEALTH_PORT, HTTP_PORT, INTERNAL_PORT
from tandem_operator.config import NetworkPolicyConfig
from tandem_operator.kinds import Obj

_ROLES = ("gateway", "operator")


def network_policy_spec(selector: dict[str, str], install_namespace: str, config: NetworkPolicyConfig) -> Obj:
    """Lets in the installation's gateways and operator, and anybody to the health port alone.

    Outgoing traffic is not limited: weights are fetched from where Models say.
    """
    ours = [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": install_namespace}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "tandem", "app.kubernetes.io/component": role}},
        }
        for role in _ROLES
    ]
    return {
        "podSelector": {"matchLabels": selector},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [*ours, *config.extra_from], "ports": [_port(HTTP_PORT), _port(INTERNAL_PORT)]},
            # The kubelet's probes come from the node, which no selector can name.
            {"ports": [_port(HEALTH_PORT)]},
        ],
    }


def _port(number: int) -> Obj:
    return {"protocol": "TCP", "port": number}


def budget_spec(selector: dict[str, str]) -> Obj:
    """One pod may be evicted at a time. Of one replica that is the pod itself: it drains, and no node is stuck."""
    return {
        "maxUnavailable": 1,
        "selector": {"matchLabels": selector},
        # A pod that never got ready serves nobody, and must not hold up the drain of its node.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
