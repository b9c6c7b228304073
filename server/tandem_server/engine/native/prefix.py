"""Names for what a block of a sequence holds: a chain of digests, so that equal names mean equal prefixes.

Beside the scheduler, which looks a prompt's blocks up by these names and publishes those that it has computed. A name
covers everything before its block as well as the salt, so that what two tenants, adapters or images made from the same
tokens never meets.
"""

from array import array
from hashlib import blake2b

DIGEST_BYTES = 16


class Chain:
    """Names of one sequence's blocks, made when they are first asked for.

    Args:
        salt: sequences share blocks only under the same one.
        block: tokens of a block.
    """

    def __init__(self, salt: str, block: int) -> None:
        self._block = block
        self._names = [blake2b(salt.encode(), digest_size=DIGEST_BYTES).digest()]

    def names(self, tokens: list[int], count: int) -> list[bytes]:
        """Those of the first `count` blocks of `tokens`, which begin with whatever was asked about before."""
        for index in range(len(self._names) - 1, count):
            own = array("i", tokens[index * self._block : (index + 1) * self._block])
            assert len(own) == self._block, f"block {index} has {len(own)} tokens of {self._block}"
            self._names.append(blake2b(self._names[-1] + own.tobytes(), digest_size=DIGEST_BYTES).digest())
        return self._names[1 : count + 1]
