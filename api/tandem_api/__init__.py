"""Tandem's contracts: what the operator, the serving pod and the gateway agree on, and nothing else.

Every other package imports this one; this one imports none of them. It holds the custom resource types
(`model`, made into CRD YAML by `crd`), what the operator tells a pod (`catalog`), what a pod tells of itself
(`report`), the key between them (`keys`), and how clients are answered in each dialect (`dialects`).
"""

__version__ = "0.1.0"
