"""Where weights may come from: the scalars of a source, and the rules that both a Model and an adapter keep.

Below `fields` and `model` on the path of a reconcile. A serving pod reads the same sources once more before it loads,
so that what slipped past an older schema goes no further than its own failed load.
"""

from typing import Annotated

from pydantic import StringConstraints

from tandem_api.base import FORBIDDEN, rule

Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_./-]+$", min_length=1, max_length=128)]
Source = Annotated[str, StringConstraints(min_length=1, max_length=512)]

_NO_DOTS = "!self.source.matches('/[.][.]?(/|$)')"

SOURCE_RULES = (
    rule(
        "self.source.matches('^(hf|s3|gs|oci|pvc|file)://.+')",
        "source must begin with hf://, pvc://, file://, s3://, gs:// or oci://",
        "source",
    ),
    rule(
        "!self.source.startsWith('hf://') || "
        "self.source.matches('^hf://[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$')",
        "an hf:// source is hf://organisation/name",
        "source",
    ),
    rule(
        "!self.source.startsWith('pvc://') || "
        f"(self.source.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9_.-]+)*$') && {_NO_DOTS})",
        "a pvc:// source is pvc://claim or pvc://claim/folder, without . or .. in its path",
        "source",
    ),
    rule(
        f"!self.source.startsWith('file://') || (self.source.matches('^file://(/[A-Za-z0-9_.-]+)+$') && {_NO_DOTS})",
        "a file:// source is file:///folder, an absolute path without . or ..",
        "source",
    ),
    rule(
        "!self.source.matches('^(s3|gs)://') || "
        f"(self.source.matches('^(s3|gs)://[a-z0-9][a-z0-9._-]+(/[A-Za-z0-9_.=-]+)*$') && {_NO_DOTS})",
        "an s3:// or gs:// source is scheme://bucket/folder, without . or .. in its path",
        "source",
    ),
    rule(
        "!self.source.startsWith('oci://') || self.source.matches("
        "'^oci://[a-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9_.-]+|@sha256:[0-9a-f]{64})$')",
        "an oci:// source is oci://registry/repository:tag or oci://registry/repository@sha256:digest",
        "source",
    ),
    rule(
        "!has(self.revision) || self.source.startsWith('hf://')",
        "revision is for hf:// sources only",
        "revision",
        FORBIDDEN,
    ),
)
