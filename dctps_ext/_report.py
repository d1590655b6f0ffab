"""What the package's reports share: the shape and count of one layer, and a table of plain text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCount:
    """One layer: first name, type, matrix (rows m, columns n), nnz, the number of its trainable weights."""

    name: str
    type: str
    rows: int
    columns: int
    nnz: int

    @property
    def weights(self) -> int:
        """m n, the number of weights of the dense layer."""
        return self.rows * self.columns

    @property
    def density(self) -> float:
        return self.nnz / self.weights


def format_table(head: list[str], rows: list[list], total: list, left: int) -> str:
    """Columns of equal width, rules below the head and above the total; `left` of them to the left.

    Integers get commas, other numbers must come as text.
    """
    lines = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in (head, *rows, total)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    rule = "-" * len(text[0])
    return "\n".join(line.rstrip() for line in (text[0], rule, *text[1:-1], rule, text[-1]))
