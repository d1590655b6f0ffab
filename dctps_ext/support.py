"""Supports: where the nonzeros of S are; sampling from a seed, validation, the kernels' packed index."""

import math
import operator

import numpy as np
import torch
from torch import Tensor, nn

_LIMIT = 2**31  # indices are int32
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def check_int(name: str, value, low: int, high: int) -> int:
    """`value` as an int in [low, high]; TypeError or ValueError naming the argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected an integer in [{low}, {high}], got {number}")
    return number


def check_density(density) -> float:
    """`density` as a float in [0, 1]; TypeError or ValueError otherwise (NaN too)."""
    try:
        number = float(density)
    except (TypeError, ValueError):
        raise TypeError(f"density: expected a number in [0, 1], got {type(density).__name__}") from None
    if not 0 <= number <= 1:
        raise ValueError(f"density: expected a number in [0, 1] (1% is 0.01), got {density}")
    return number


def check_module(name: str, value) -> None:
    """TypeError naming the argument unless `value` is a torch.nn.Module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name}: expected a torch.nn.Module, got {describe(value)}")


def describe(value) -> str:
    """What came, for an error message."""
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _check_shape(m, n) -> tuple[int, int]:
    return check_int("m", m, 1, _LIMIT - 1), check_int("n", n, 1, _LIMIT - 1)


# ---- random numbers
# Our own counter-based generator, because numpy's and torch's distributions may change between versions: word
# i of a stream is two rounds of splitmix64's finalizer (Steele, Lea & Flood, OOPSLA 2014) over i and a key of
# 128 bits.


def _mix(z: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer, a bijection of uint64, elementwise."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class _Stream:
    """An endless sequence of uniform uint64 words, fixed by a few integers, however it is cut into calls."""

    def __init__(self, *words: int):
        key = np.array([0x243F6A8885A308D3, 0x13198A2E03707344], dtype=np.uint64)  # digits of pi
        for word in words:
            key = _mix(key * _GOLDEN ^ _mix(np.full(2, word, dtype=np.uint64) + key))
        self._key = key
        self._position = 0

    def below(self, bound: int, count: int) -> np.ndarray:
        """The next `count` uniform integers in [0, bound): words masked to a power of 2, others rejected."""
        mask = (1 << (bound - 1).bit_length()) - 1
        accepted = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            ask = math.ceil((count - done) * (mask + 1) / bound * 1.02) + 16
            words = np.arange(self._position, self._position + ask, dtype=np.uint64)
            words = _mix(_mix(words * _GOLDEN + self._key[0]) ^ self._key[1]) & np.uint64(mask)
            good = np.flatnonzero(words < np.uint64(bound))[: count - done]
            accepted[done : done + good.size] = words[good]
            done += good.size
            # A word behind the last one used belongs to the next call.
            self._position += ask if done < count else int(good[-1]) + 1
        return accepted


def _sample(stream: _Stream, width: int, counts: np.ndarray) -> np.ndarray:
    """Sorted positions row*width + col, counts[row] distinct uniform columns a row, in O(sum(counts)) memory.

    A row draws exactly as many columns as it still lacks, until it lacks none: its set is the first distinct
    draws of its own sequence, which is uniform over all sets of that size. A row more than half full draws
    its holes instead, so that at least half of all draws are new.
    """
    inverted = counts > width - counts
    lacking = np.where(inverted, width - counts, counts)
    positions = np.empty(0, dtype=np.int64)
    while total := int(lacking.sum()):
        rows = np.repeat(np.arange(counts.size), lacking)
        drawn = np.sort(rows * width + stream.below(width, total))  # several times faster than np.unique
        drawn = drawn[np.append(True, drawn[1:] != drawn[:-1])]
        at = np.searchsorted(positions, drawn)
        new = np.ones(drawn.size, dtype=bool)
        inside = at < positions.size
        new[inside] = positions[at[inside]] != drawn[inside]
        drawn = drawn[new]
        positions = np.insert(positions, at[new], drawn)
        lacking = lacking - np.bincount(drawn // width, minlength=counts.size)
    if not inverted.any():
        return positions

    # At most 2 bytes of `full` for each nonzero, since these rows are more than half full.
    full_rows = np.flatnonzero(inverted)
    rank = np.cumsum(inverted) - 1
    rows, cols = positions // width, positions % width
    is_hole = inverted[rows]
    full = np.ones((full_rows.size, width), dtype=bool)
    full[rank[rows[is_hole]], cols[is_hole]] = False
    rows, cols = np.nonzero(full)
    return np.sort(np.concatenate([positions[~is_hole], full_rows[rows] * width + cols]))


def _random_positions(m: int, n: int, nnz: int, seed: int, per_row: bool) -> np.ndarray:
    stream = _Stream(seed, m, n, nnz, per_row)
    if not per_row:
        return _sample(stream, m * n, np.array([nnz]))
    base, more = divmod(nnz, m)
    counts = np.full(m, base)
    counts[_sample(stream, m, np.array([more]))] += 1
    return _sample(stream, n, counts)


# ---- support


def _pack(rows: np.ndarray, cols: np.ndarray, m: int, n: int) -> Tensor:
    """[crow | col | ccol | row | perm] of nonzeros sorted by (row, col), as one int32 tensor on the CPU."""
    nnz = rows.size
    index = np.zeros(_packed_size(m, n, nnz), dtype=np.int32)
    crow, col, ccol, row, perm = _views(index, m, n, nnz)
    crow[1:] = np.cumsum(np.bincount(rows, minlength=m))
    col[:] = cols
    ccol[1:] = np.cumsum(np.bincount(cols, minlength=n))
    perm[:] = np.argsort(col, kind="stable")  # stable: rows ascend within a column
    row[:] = rows[perm]
    return torch.from_numpy(index)


def _packed_size(m: int, n: int, nnz: int) -> int:
    return (m + 1) + (n + 1) + 3 * nnz


def _views(index, m: int, n: int, nnz: int) -> list:
    """The five parts of a packed index, a tensor or an array, without a copy."""
    parts, start = [], 0
    for size in (m + 1, nnz, n + 1, nnz, nnz):
        parts.append(index[start : start + size])
        start += size
    return parts


class Support:
    """The positions of the nonzeros of an m x n sparse matrix: immutable, unique, sorted by (row, col).

    Make one with `Support.random`, `from_mask`, `from_indices` or `from_csr`, which check their arguments;
    the constructor itself trusts them.

    Attributes:
        shape: (m, n), both in [1, 2^31).
        nnz: number of positions, in [0, 2^31).
        seed: the seed of a random support, None for an explicit one.
        per_row: whether a random support has the same number of positions in every row (to within one).
        index: int32 [(m + 1) + nnz + (n + 1) + nnz + nnz], packed [crow | col | ccol | row | perm].
        crow, col: row starts [m + 1] and columns [nnz] in CSR order, views of `index`.
        ccol, row, perm: column starts [n + 1], rows [nnz] and CSR positions [nnz] in CSC order, views of
            `index`.
    """

    def __init__(self, shape: tuple[int, int], index: Tensor, seed: int | None = None, per_row: bool = False):
        m, n = shape
        self.shape = (m, n)
        self.nnz = (index.numel() - (m + 1) - (n + 1)) // 3
        self.seed = seed
        self.per_row = per_row
        self.index = index

    @classmethod
    def random(
        cls, m: int, n: int, nnz: int, seed: int = 0, *, per_row: bool = False, device=None
    ) -> "Support":
        """`nnz` positions drawn uniformly without replacement from the m*n, in O(nnz + m + n) memory.

        The result is a function of (seed, m, n, nnz, per_row) alone: the same on every device, platform and
        version of numpy and torch. With `per_row` every row gets floor(nnz / m) positions, uniform within the
        row, and nnz mod m rows drawn uniformly get one more ("equal per filter", Price & Tanner 2021).

        Args:
            m, n: rows and columns, in [1, 2^31).
            nnz: in [0, min(m*n, 2^31 - 1)].
            seed: in [0, 2^63).
            device: of the index; default: torch's default device. On "meta" nothing is drawn.

        Raises: TypeError, ValueError naming the argument.
        """
        m, n = _check_shape(m, n)
        nnz = check_int("nnz", nnz, 0, min(m * n, _LIMIT - 1))
        seed = check_int("seed", seed, 0, 2**63 - 1)
        per_row = bool(per_row)
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "meta":
            index = torch.empty(_packed_size(m, n, nnz), dtype=torch.int32, device="meta")
        else:
            positions = _random_positions(m, n, nnz, seed, per_row)
            index = _pack(positions // n, positions % n, m, n).to(device)
        return cls((m, n), index, seed, per_row)

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Support":
        """The positions where `mask`, a bool tensor [m, n], is True; on the mask's device."""
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask: expected a torch.bool tensor, got {describe(mask)}")
        if mask.dim() != 2:
            raise ValueError(f"mask: expected 2 dimensions [m, n], got shape {tuple(mask.shape)}")
        m, n = _check_shape(*mask.shape)
        rows, cols = mask.nonzero().cpu().numpy().T
        check_int("number of True in mask", rows.size, 0, _LIMIT - 1)
        return cls((m, n), _pack(rows, cols, m, n).to(mask.device))

    @classmethod
    def from_indices(cls, rows, cols, shape: tuple[int, int]) -> "Support":
        """The positions (rows[t], cols[t]) of an m x n matrix, in any order; on the device of `rows`.

        Args:
            rows, cols: 1-D integer tensors (or sequences) of one length, 0 <= rows < m, 0 <= cols < n, no
                pair twice.
            shape: (m, n).
        """
        m, n = _check_shape(*shape)
        rows, device = _as_indices("rows", rows, m)
        cols, _ = _as_indices("cols", cols, n)
        if rows.size != cols.size:
            raise ValueError(f"cols: expected as many as rows, {rows.size}, got {cols.size}")
        positions = np.sort(rows * n + cols)
        again = np.flatnonzero(positions[1:] == positions[:-1])
        if again.size:
            position = int(positions[again[0]])
            raise ValueError(
                f"rows, cols: expected distinct positions, got {divmod(position, n)} more than once"
            )
        return cls((m, n), _pack(positions // n, positions % n, m, n).to(device))

    @classmethod
    def from_csr(cls, crow, col, shape: tuple[int, int]) -> "Support":
        """The positions of a CSR matrix: row r has the columns col[crow[r]:crow[r + 1]], strictly ascending.

        Args:
            crow: 1-D integers [m + 1], from 0 to nnz, never descending.
            col: 1-D integers [nnz], 0 <= col < n; on whose device the result is.
            shape: (m, n).
        """
        m, n = _check_shape(*shape)
        col, device = _as_indices("col", col, n)
        crow, _ = _as_indices("crow", crow, col.size + 1)
        if crow.size != m + 1:
            raise ValueError(f"crow: expected m + 1 = {m + 1} elements, got {crow.size}")
        if crow[0] != 0 or crow[-1] != col.size:
            raise ValueError(f"crow: expected to go from 0 to nnz = {col.size}, got {crow[0]} to {crow[-1]}")
        lengths = np.diff(crow)
        if (lengths < 0).any():
            row = int(np.flatnonzero(lengths < 0)[0])
            raise ValueError(
                f"crow: expected never to descend, got {crow[row]} then {crow[row + 1]} at row {row}"
            )
        rows = np.repeat(np.arange(m), lengths)
        wrong = np.flatnonzero((rows[1:] == rows[:-1]) & (col[1:] <= col[:-1]))
        if wrong.size:
            t = int(wrong[0])
            what = "a duplicate" if col[t] == col[t + 1] else "unsorted columns"
            raise ValueError(
                f"col: expected strictly ascending columns in every row, got {what}: {col[t]} then "
                f"{col[t + 1]} in row {rows[t]}"
            )
        return cls((m, n), _pack(rows, col, m, n).to(device))

    @property
    def crow(self) -> Tensor:
        return self._part(0)

    @property
    def col(self) -> Tensor:
        return self._part(1)

    @property
    def ccol(self) -> Tensor:
        return self._part(2)

    @property
    def row(self) -> Tensor:
        return self._part(3)

    @property
    def perm(self) -> Tensor:
        return self._part(4)

    def _part(self, which: int) -> Tensor:
        return _views(self.index, *self.shape, self.nnz)[which]

    @property
    def density(self) -> float:
        """nnz / (m n)."""
        return self.nnz / (self.shape[0] * self.shape[1])

    def to(self, device) -> "Support":
        """This support on `device`, or itself. A random one is drawn again when it leaves "meta"."""
        device = torch.device(device)
        if self.index.is_meta and device.type != "meta":
            if self.seed is None:
                raise RuntimeError(
                    "support: an explicit support on the meta device has no indices to copy from"
                )
            return Support.random(*self.shape, self.nnz, self.seed, per_row=self.per_row, device=device)
        index = self.index.to(device)
        return self if index is self.index else Support(self.shape, index, self.seed, self.per_row)

    def mask(self) -> Tensor:
        """A bool tensor [m, n], True at the positions."""
        m, n = self.shape
        rows = torch.repeat_interleave(torch.arange(m, device=self.index.device), self.crow.diff())
        mask = torch.zeros(m, n, dtype=torch.bool, device=self.index.device)
        mask[rows, self.col.long()] = True
        return mask

    def __eq__(self, other) -> bool:
        """Whether both have the same shape and positions; seeds and devices do not count."""
        if not isinstance(other, Support):
            return NotImplemented
        if self.shape != other.shape or self.nnz != other.nnz:
            return False
        if self.seed is not None and (self.seed, self.per_row) == (other.seed, other.per_row):
            return True
        size = self.shape[0] + 1 + self.nnz  # crow and col say it all
        a, b = self.to("cpu"), other.to("cpu")
        return torch.equal(a.index[:size], b.index[:size])

    def __hash__(self) -> int:
        return hash((self.shape, self.nnz))

    def __repr__(self) -> str:
        m, n = self.shape
        origin = "explicit" if self.seed is None else f"seed={self.seed}"
        per_row = ", per_row=True" if self.per_row else ""
        size = f"{m}x{n}, nnz={self.nnz}, density={self.density:.3%}"
        return f"Support({size}, {origin}{per_row}, device='{self.index.device}')"


def _as_indices(name: str, value, bound: int) -> tuple[np.ndarray, torch.device]:
    """A 1-D integer tensor or sequence in [0, bound) as an int64 array, and the device it came from."""
    tensor = torch.as_tensor(value) if isinstance(value, (Tensor, np.ndarray)) else torch.tensor(value)
    if tensor.numel() == 0 and not isinstance(value, (Tensor, np.ndarray)):
        tensor = tensor.long()  # an empty list has no dtype of its own
    if tensor.dtype in (torch.bool,) or tensor.is_floating_point() or tensor.is_complex():
        raise TypeError(f"{name}: expected integers, got {describe(tensor)}")
    if tensor.dim() != 1:
        raise ValueError(f"{name}: expected 1 dimension, got shape {tuple(tensor.shape)}")
    check_int(f"length of {name}", tensor.numel(), 0, _LIMIT)
    array = tensor.cpu().numpy().astype(np.int64)
    if array.size and (array.min() < 0 or array.max() >= bound):
        wrong = array[(array < 0) | (array >= bound)][0]
        raise ValueError(f"{name}: expected indices in [0, {bound - 1}], got {wrong}")
    return array, tensor.device
