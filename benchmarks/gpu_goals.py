"""The goals of the kernels on an H200-class GPU, judged on what benchmarks/gpu.py measured there.

Each is a bound on ratios of one run, held by the worst of them. A section is measured for each type, as "dct
float32"; one whose name ends in "TF32" lets cuBLAS, and the dense form that `auto` may take, round to it.
"""

from .linear_goals import LINEAR, OURS, Goal, block_of, faster

CLONE, COMPOSED, SPARSE, UNFUSED, AUTO = "clone", "rfft", "torch.sparse", "unfused", "auto"
PRIMES = (1021,)  # lengths that are shown, but have no goal


def _shape(row):
    return f"{row['pass']} q={row['q']}"


def _layer(row):
    return f"{row['pass']} q={row['q']} p={100 * row['density']:.3g}% B={row['batch']}"


def _dct(dtype, target, shortest, longest):
    return faster(
        f"dct {dtype}",
        f"DCT {dtype}: fraction of clone, q in {shortest}..{longest}",
        target,
        OURS,
        (CLONE,),
        lambda r: shortest <= r["q"] <= longest and r["q"] not in PRIMES,
        _shape,
    )


def _few(row):
    """p * n <= 6, nonzeros in a row; where the whole layer should cost little more than moving its rows."""
    return row["density"] * row["q"] <= 6 and row["q"] <= 4096


def _fused(dtype, text, target, other):
    return faster(
        f"fused {dtype}",
        f"fused forward {dtype}, p*n <= 6: {text}",
        target,
        OURS,
        (other,),
        lambda r: r["pass"] == "forward" and _few(r),
        _layer,
    )


def _backward_over_forward(dtype):
    def values(results, threads):
        ours = {
            block_of(row): row
            for row in results["rows"]
            if (row["section"], row["peer"]) == (f"fused {dtype}", OURS) and _few(row)
        }
        return {
            _layer(row): row["seconds"] / ours[block_of({**row, "pass": "forward"})]["seconds"]
            for row in ours.values()
            if row["pass"] == "backward" and block_of({**row, "pass": "forward"}) in ours
        }

    text = f"fused backward {dtype}, p*n <= 6: times the forward"
    return Goal(f"fused {dtype}", text, 3, values, at_least=False)


def _over_cublas(precision):
    section = f"dense {precision}"
    return faster(
        section, f"auto over cuBLAS on merged W, {precision}", 1, AUTO, (LINEAR,), lambda r: True, _layer
    )


GOALS = (
    _dct("float32", 0.90, 1, 2048),
    _dct("float32", 0.80, 2049, 8192),
    _dct("float32", 0.65, 8193, 16384),
    _dct("float32", 0.50, 16385, 32768),
    _dct("bfloat16", 0.85, 1, 512),
    _dct("bfloat16", 0.70, 513, 4096),
    _dct("bfloat16", 0.50, 4097, 16384),
    faster(
        "dct float32",
        "DCT float32 over the composed rfft DCT",
        5,
        OURS,
        (COMPOSED,),
        lambda r: r["q"] not in PRIMES,
        _shape,
    ),
    faster(
        "sparse float32", "SpMM, SDDMM over torch's best layout", 2, OURS, (SPARSE,), lambda r: True, _layer
    ),
    *(
        goal
        for dtype in ("float32", "bfloat16")
        for goal in (
            _fused(dtype, "fraction of clone", 0.75, CLONE),
            _fused(dtype, "over the unfused sum", 1.8, UNFUSED),
            _backward_over_forward(dtype),
        )
    ),
    *map(_over_cublas, ("float32", "TF32", "bfloat16")),
    faster(
        "dense float32",
        "auto over cuBLAS, float32, q >= 2048, p <= 0.1%",
        5,
        AUTO,
        (LINEAR,),
        lambda r: r["q"] >= 2048 and r["density"] <= 0.001,
        _layer,
    ),
)
