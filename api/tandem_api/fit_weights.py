"""What a checkpoint's weights take once they are loaded, and at the worst moment of the load. Pure.

Below `fit`. Matrices are counted as the engine makes them: joined ones as one, quantised ones with their scales.
"""

from dataclasses import dataclass

GROUP = 32
"""Inputs that share a scale in Int4."""
TILE = 64
"""The 4-bit kernels want a multiple of so many outputs; rows of zeros fill up."""
QUANTIZING = {"None": 0, "Int8": 0, "Int4": 6}
"""Bytes a weight that its quantisation holds at its worst beside the weight itself and the result."""
PACKING_INT4_ON_GPU = 4
"""Further ones while a GPU's kernel gets two numbers into a byte."""


@dataclass(frozen=True)
class Matrix:
    """`count` linear layers `[outputs, inputs]`."""

    outputs: int
    inputs: int
    bias: bool = False
    count: int = 1
    exact: bool = False
    """Never quantised."""

    @property
    def elements(self) -> int:
        """Of one of them, without its bias."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Packing:
    """How matrices are held."""

    itemsize: int
    """Bytes of a number of the computation."""
    quantization: str = "None"
    on_gpu: bool = False

    def bytes(self, matrix: Matrix) -> int:
        """Of one of the matrices, its bias and scales included."""
        bias = matrix.outputs * self.itemsize if matrix.bias else 0
        if self.quantization == "None" or matrix.exact:
            return matrix.elements * self.itemsize + bias
        if self.quantization == "Int8":
            return matrix.elements + 2 * matrix.outputs + bias
        padded = -(-matrix.outputs // TILE) * TILE
        return padded * matrix.inputs // 2 + 4 * padded * (matrix.inputs // GROUP) + bias

    def making(self, matrix: Matrix) -> int:
        """What making one of them holds beside itself in the computation's format, and beside the result."""
        each = 0 if matrix.exact else QUANTIZING[self.quantization]
        further = PACKING_INT4_ON_GPU if each and self.on_gpu else 0
        return matrix.elements * (each + further)


@dataclass(frozen=True)
class Inventory:
    """All that a model holds, as the engine makes it."""

    table: Matrix
    """The embedding table, as the matrix that it is where the head is tied to it."""
    matrices: tuple[Matrix, ...]
    """All that are multiplied by, the head too unless it is tied."""
    tied: bool = False
    vectors: int = 0
    """Numbers in the computation's format that belong to no matrix."""
    exact_vectors: int = 0
    """The same in float32."""

    @property
    def parameters(self) -> int:
        """Numbers in all; tied ones once."""
        own = sum(m.count * (m.elements + m.outputs * m.bias) for m in self.matrices)
        return own + self.table.elements + self.vectors + self.exact_vectors

    def bytes(self, packing: Packing) -> int:
        """What they take once loaded."""
        multiplied = (*self.matrices, self.table) if self.tied else self.matrices
        shared = self.tied and packing.on_gpu and packing.quantization == "None"
        return (
            sum(m.count * packing.bytes(m) for m in multiplied)
            + (0 if shared else self.table.elements * packing.itemsize)
            + self.vectors * packing.itemsize
            + self.exact_vectors * 4
        )

    def loading(self, packing: Packing) -> int:
        """What the load holds beyond the weights at its worst: one matrix before it is packed, or its two parts."""
        own = [m.elements * packing.itemsize + packing.making(m) for m in self.matrices]
        return max([*own, packing.making(self.table) if self.tied else 0])

    def unpacked(self, packing: Packing) -> int:
        """Bytes of the largest matrix that a step turns back into the computation's format; 0 where none is."""
        if packing.quantization != "Int8":
            return 0
        heads = [self.table] if self.tied and packing.on_gpu else []
        return packing.itemsize * max((m.elements for m in (*self.matrices, *heads) if not m.exact), default=0)
