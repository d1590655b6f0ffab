"""The suite: which cases each scope has, and how a pass of a case is measured into rows.

Sections: `ops` (dct, idct, spmm, spmm_t, sddmm), `linear` and `conv` (layers: forward, backward, step),
`networks` (inference and training step), `auto` (the choice of algorithm at small q), `grid` (time over q and
p: the complexity picture, the crossover map), `overhead` (a tiny call), `memory` (bytes beside the results,
in a fresh process), `storage` (bytes of a network before, in and after training, by method).
"""

import contextlib
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace

import torch

import dctps_ext
from dctps_ext.experiments.record import use_threads

from . import storage
from .peers import AUTO, DCTPS, FAST, OURS, PLAIN, entries
from .problems import NETWORK_TOLERANCES, PRODUCTS, TOLERANCES, TRANSFORMS, Case, problem_of
from .timing import Peer, gpu_seconds, interleave, page_faults, peak_bytes, peak_rss, validate, wall_seconds

LAYER_PASSES = ("forward", "backward", "step")
OWN = (OURS, DCTPS, AUTO, FAST, PLAIN)  # peers that run the package's kernels, so that have its scratch


@dataclass(frozen=True)
class Scope:
    """How much to measure: sizes q, densities p, batches; B = elements // q where elements are given.

    Attributes:
        transforms, products: sizes of the ops; products at each of `densities`.
        op_elements, grid_elements, memory_elements: B * q.
        linear: (q, batch, or None for `op_elements` // q), each at each of `densities`.
        dtypes: beside float32, of the ops and of linear layers at `dtype_size`.
        conv: `Case` fields. networks: (model, batch). auto: (sizes, densities, batches).
        grid: (q, densities); one number of threads.
        memory: sizes. storage: (model, density).
        rounds, seconds, stretch_seconds: of interleaving: `seconds` end a pass early, but not before five
            rounds; a peer's turn takes at least `stretch_seconds`.
    """

    transforms: tuple = ()
    products: tuple = ()
    op_elements: int = 2**22
    densities: tuple = (0.001, 0.01)
    linear: tuple = ()
    dtypes: tuple = ()
    dtype_size: int = 1024
    conv: tuple = ()
    networks: tuple = ()
    auto: tuple = ((), (), ())
    grid: tuple = ()
    grid_elements: int = 2**20
    overhead: bool = False
    memory: tuple = ()
    memory_elements: int = 2**21
    storage: tuple = ()
    rounds: int = 21
    seconds: float = 1.0
    stretch_seconds: float = 20e-3


def _conv(channels, size, batch, kernel=3, out=None, **more):
    return {"n": channels, "m": out or channels, "size": size, "batch": batch, "kernel": kernel, **more}


_NETWORKS = ("lenet5", "vgg19", "resnet18", "resnet50", "mobilenet_v2", "fixup_resnet110")
_POINTWISE = (_conv(256, 16, 16, 1, 64), _conv(512, 8, 16, 1, 128), _conv(2048, 4, 16, 1, 512))
_MANY = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)

SCOPES = {
    # The tests': does it work?
    "tiny": Scope(
        transforms=(12,),
        products=(12,),
        op_elements=48,
        densities=(0.05,),
        linear=((24, 3),),
        dtypes=("bfloat16",),
        dtype_size=12,
        conv=(_conv(4, 5, 2),),
        networks=(("lenet5", 2),),
        auto=((16,), (0.2,), (3,)),
        grid=((16, (0.05, 0.2)), (32, (0.05,))),
        grid_elements=128,
        overhead=True,
        storage=(("lenet5", 0.01),),
        rounds=2,
        seconds=0.0,
        stretch_seconds=0.0,
    ),
    # `make demo`: under a minute on 2 cores.
    "demo": Scope(
        linear=((256, 256), (1024, 256), (4096, 256)), conv=(_conv(64, 32, 8),), rounds=7, seconds=0.5
    ),
    # `make bench`: under 3 minutes on 2 cores.
    "quick": Scope(
        transforms=(256, 1021, 1024, 4096),
        products=(1024,),
        op_elements=2**20,
        linear=((256, 256), (1024, 1), (1024, 256)),
        dtypes=("bfloat16",),
        conv=(_conv(64, 16, 4), _conv(256, 8, 8), _POINTWISE[0]),
        networks=tuple((name, 2) for name in _NETWORKS),
        auto=((32, 120), (0.05,), (256,)),
        grid=tuple((q, (0.001, 0.01, 0.1, 0.3)) for q in (16, 64, 256, 1024, 4096)),
        grid_elements=2**18,
        overhead=True,
        storage=(("lenet5", 0.01),),
        rounds=7,
        seconds=0.1,
        stretch_seconds=5e-3,
    ),
    # For committed results: about 15 minutes.
    "standard": Scope(
        transforms=(256, 576, 1000, 1021, 1024, 2048, 4096, 4608),
        products=(256, 1024, 4096),
        linear=((256, 1024), (1024, 1), (1024, 1024), (4096, 1), (4096, 256)),
        dtypes=("bfloat16", "float16", "float64"),
        conv=(*(_conv(c, s, 8) for c, s in ((64, 32), (128, 16), (256, 8), (512, 8))), *_POINTWISE),
        networks=tuple((name, 4) for name in _NETWORKS),
        auto=((16, 32, 64, 120), (0.001, 0.2), (256,)),
        grid=(*((16 * 2**k, _MANY) for k in range(9)), *((q, (0.001, 0.01)) for q in (8192, 16384, 32768))),
        overhead=True,
        memory=(1024, 4096),
        storage=(("lenet5", 0.01), ("lenet5", 0.001)),
        rounds=15,
        seconds=0.4,
    ),
    # A GPU's, where --device is cuda: tensors of 256 MiB.
    "gpu": Scope(
        transforms=(64, 256, 512, 576, 1000, 1021, 1024, 2048, 4096, 4608, 8192, 16384, 32768),
        products=(1024, 4096),
        op_elements=2**26,
        linear=tuple((q, batch) for q in (256, 1024, 2048, 4096, 8192) for batch in (512, None)),
        dtypes=("bfloat16", "float16"),
        conv=tuple(_conv(c, s, 256) for c, s in ((64, 32), (128, 16), (256, 8), (512, 8))),
        networks=tuple((name, 128) for name in _NETWORKS),
        grid=tuple((q, (0.001, 0.01, 0.1)) for q in (64, 256, 1024, 4096)),
        grid_elements=2**26,
        rounds=11,
        seconds=0.5,
        stretch_seconds=2e-3,  # inputs that rotate through more than the L2 find it as cold at any time
    ),
    # Everything that the CPU's goals ask for; an hour or more.
    "full": Scope(
        transforms=(64, 256, 512, 576, 1000, 1021, 1024, 2048, 4096, 4608, 8192, 16384, 32768),
        products=(256, 1024, 4096),
        densities=(0.001, 0.01),
        linear=tuple((q, batch) for q in (256, 1024, 4096) for batch in (1, 256, 1024, None)),
        dtypes=("bfloat16", "float16", "float64"),
        conv=(
            *(_conv(c, s, 32) for c, s in ((64, 32), (128, 16), (256, 8), (512, 8))),
            *_POINTWISE,
            _conv(512, 4, 16, 1, 2048),
            *(_conv(64, 16, 16, k) for k in (5, 7)),
            *(_conv(128, 16, 16, **{name: 2}) for name in ("stride", "dilation", "groups")),
            _conv(32, 16, 16, groups=32),
            _conv(128, 16, 16, 1, 256, stride=2),
            *(_conv(n, 32, 16, out=m) for n, m in ((3, 64), (16, 16), (32, 32))),
            *(_conv(512, size, 32) for size in (4, 2)),
        ),
        networks=tuple((name, 32) for name in _NETWORKS),
        auto=((16, 32, 64, 120), (0.001, 0.05, 0.2), (256, 4096)),
        grid=(
            *((16 * 2**k, (0.0003, *_MANY)) for k in range(9)),
            *((q, (0.001, 0.01)) for q in (384, 768, 1536, 3072, 6144, 8192, 12288, 16384, 24576, 32768)),
        ),
        grid_elements=2**21,
        overhead=True,
        memory=(1024, 4096, 8192),
        storage=(("lenet5", 0.01), ("lenet5", 0.001), ("resnet18", 0.01)),
        rounds=21,
        seconds=4.0,
    ),
}
SECTIONS = ("ops", "linear", "conv", "networks", "auto", "grid", "overhead", "memory", "storage")


def jobs(scope, sections=SECTIONS, threads=(1,), device="cpu"):
    """What to measure: a list of (case, pass).

    On a GPU one number of threads is left, ops and layers are measured in TF32 too, and sections about the
    CPU's memory stay away.
    """
    listed = []

    def add(section, kinds, passes, dtypes=("float32",), counts=threads, **fields):
        if section not in sections:
            return
        for count in counts:
            for kind in kinds:
                for dtype in dtypes:
                    case = Case(section, kind, dtype=dtype, device=device, threads=count, **fields)
                    listed.extend((case, pass_) for pass_ in passes)

    threads = (1,) if device == "cuda" else tuple(threads)
    plain = ("float32", "tf32") if device == "cuda" else ("float32",)
    for q in scope.transforms:
        batch = max(1, scope.op_elements // q)
        dtypes = (*plain, *scope.dtypes) if q == scope.dtype_size or device == "cuda" else plain
        add("ops", TRANSFORMS, ("forward",), tuple(d for d in dtypes if d != "tf32"), m=q, n=q, batch=batch)
    for q in scope.products:
        for p in scope.densities:
            batch = max(1, scope.op_elements // q)
            dtypes = (*plain, *scope.dtypes) if q == scope.dtype_size else plain
            add("ops", PRODUCTS, ("forward",), dtypes, m=q, n=q, density=p, batch=batch)
    for q, batch in scope.linear:
        for p in scope.densities:
            wide = device == "cuda" or (q == scope.dtype_size and batch != 1)
            dtypes = (*plain, *scope.dtypes) if wide else plain
            batch = batch or max(1, scope.op_elements // q)
            add("linear", ("linear",), LAYER_PASSES, dtypes, m=q, n=q, density=p, batch=batch)
    for fields in scope.conv:
        for p in scope.densities:
            add("conv", ("conv",), LAYER_PASSES, plain, density=p, **fields)
    for model, batch in scope.networks:
        add("networks", ("network",), ("inference", "step"), density=0.001, model=model, batch=batch)
    sizes, densities, batches = scope.auto
    for q in sizes:
        for p in densities:
            for batch in batches:
                add("auto", ("linear",), ("forward", "step"), m=q, n=q, density=p, batch=batch)
    for q, densities in scope.grid:
        for p in densities:
            batch = max(1, scope.grid_elements // q)
            add(
                "grid", ("linear",), ("forward", "step"), counts=threads[:1], m=q, n=q, density=p, batch=batch
            )
    if scope.overhead:
        passes = ("forward", "recorded", "step")
        add("overhead", ("linear",), passes, m=16, n=16, density=0.01, batch=1)
    if device == "cpu":
        for q in scope.memory:
            for p in scope.densities:
                batch = max(1, scope.memory_elements // q)
                add("memory", ("linear",), ("forward", "backward"), m=q, n=q, density=p, batch=batch)
        for model, p in scope.storage:
            add("storage", ("network",), storage.METHODS, counts=(1,), model=model, density=p, batch=16)
    return listed


def key(case, pass_):
    """What names a job in a results file: a string."""
    return " ".join(map(str, (*asdict(case).values(), pass_)))


def measure(scope, case, pass_):
    """Check, then time, all peers of one pass of a case.

    Returns: (rows, notes): a row for each peer; a note for each that was left out.

    Raises: `WrongResult` from any peer; then nothing has been timed.
    """
    if case.section == "memory":
        return measure_memory(case, pass_), []
    with use_threads(case.threads), _precision(case.dtype):
        return storage.measure(case, pass_) if case.section == "storage" else _measure(scope, case, pass_)


@contextlib.contextmanager
def _precision(dtype):
    """Within, torch may round products of float32 to TF32 if `dtype` says so, and must not else."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def _measure(scope, case, pass_):
    problem = problem_of(case)
    tolerance = NETWORK_TOLERANCES[pass_] if case.kind == "network" else TOLERANCES[case.dtype]
    clock = gpu_seconds if case.device == "cuda" else wall_seconds
    inputs = len(problem.inputs)
    peers, errors, notes = [], [], []
    for entry in entries(case, pass_):
        why = entry.missing
        checked = [] if why else list(_checked_ways(entry, problem, pass_, tolerance, notes))
        if why:
            notes.append(why)
        if not checked:
            if entry.name in OWN:
                return [], notes  # without the package's own there is nothing to compare
            continue
        if len(checked) > 1:
            ways = [way for way, _ in checked]
            times = interleave(
                ways, inputs, 3, entry.name, clock=clock, stretch_seconds=scope.stretch_seconds
            )
            best = min(range(len(checked)), key=lambda k: times[k].median)
            checked = [checked[best]]
        peers.append(checked[0][0])
        errors.append(checked[0][1])
    title = f"{case.title}, {pass_}, {case.dtype}"
    timings = interleave(peers, inputs, scope.rounds, title, scope.seconds, clock, scope.stretch_seconds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    rows = []
    for peer, timing, error in zip(peers, timings, errors, strict=True):
        rows.append(
            {
                **_about(case, pass_, problem.nnz),
                **{"peer": peer.name, "note": peer.note, "seconds": _rounded(timing.median)},
                **{"samples": [_rounded(s) for s in timing.samples], "calls_per_round": timing.calls},
                **{"relative_error": error, "held_bytes": peer.held_bytes, **_peaks(peer, case)},
                "load": load,
            }
        )
        if case.kind in TRANSFORMS and case.device == "cpu":
            rows[-1]["page_faults_per_call"] = page_faults(peer.call, inputs)
    return rows, notes


def _checked_ways(entry, problem, pass_, tolerance, notes):
    """Yields (way, its error) for the ways of an entry that there is a kernel for; notes name the others."""
    kind = NotImplementedError if entry.name in OWN else RuntimeError  # which includes the former
    try:
        ways = entry.ways(problem, pass_)
    except kind as error:
        notes.append(f"{entry.name}: {_first_line(error)}")
        return
    for way in ways:
        try:
            yield way, validate(way, problem.oracle(way.of, pass_), tolerance, problem.pick)
        except kind as error:  # no kernel for this layout, dtype or device
            what = f"{entry.name} ({way.note})" if way.note else entry.name
            notes.append(f"{what}: {_first_line(error)}")


def _about(case, pass_, nnz):
    return {**asdict(case), "q": case.q, "nnz": nnz, "pass": pass_}


def _rounded(seconds):
    return float(f"{seconds:.4g}")


def _first_line(error):
    return str(error).strip().split("\n")[0]


def _peaks(peer, case):
    """Bytes beside what is held between calls: torch's and the kernels' scratch; the process's growth."""
    # The package's scratch on a CPU lies outside torch's allocator and is kept by its threads: the caller's
    # is released first, so that it counts afresh; that of other threads counts as large as it ever was.
    rss = peak_rss(lambda: peer.call(0)) if case.device == "cpu" else None
    dctps_ext._C.release_workspace()
    dctps_ext._C.reset_workspace_peak()
    torch_bytes = peak_bytes(lambda: peer.call(0), case.device)
    own = peer.name in OWN and case.device == "cpu"
    return {
        "peak_bytes": torch_bytes + (dctps_ext._C.workspace_peak_bytes() if own else 0),
        "peak_rss_bytes": rss,
    }


# Memory


def measure_memory(case, pass_):
    """One row, measured in a process of its own: scratch is kept by threads, and theirs must be new."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return [pool.submit(memory_of, case, pass_).result()]


def memory_of(case, pass_):
    """Peak bytes of a layer's forward or backward pass, and how many of them are beside its results.

    Allocations of torch and scratch of the kernels, from when the inputs (and the graph) are there. Plans,
    O(q) constants that are cached for good, are not counted.
    """
    with use_threads(case.threads):
        problem = problem_of(replace(case, section="memory"))
        layer, x, g = problem.module, problem.inputs[0], problem.gradients[0]
        oracle = problem.oracle("whole", pass_)
        results = {}
        if pass_ == "forward":

            def call():
                with torch.no_grad():
                    results["y"] = layer(x)
        else:
            x.requires_grad_()
            graphs = [layer(x) for _ in range(3)]  # peak_bytes calls twice, peak_rss once

            def call():
                results.clear()
                x.grad = None
                layer.zero_grad(set_to_none=True)
                graphs.pop().backward(g)
                results["dx"] = x.grad
                results.update((name, getattr(layer, name).grad) for name in ("values", "bias", "alpha"))

        dctps_ext._C.release_workspace()
        dctps_ext._C.reset_workspace_peak()
        rss = peak_rss(call)
        results.clear()
        torch_bytes = peak_bytes(call)
        scratch = dctps_ext._C.workspace_peak_bytes()
        peer = Peer(lambda i: None, lambda: results, DCTPS)
        error = validate(peer, oracle, TOLERANCES[case.dtype], problem.pick)
        kept = sum(t.nbytes for t in results.values())
    return {
        **_about(case, pass_, problem.nnz),
        **{"peer": DCTPS, "note": "", "relative_error": error, "results_bytes": kept},
        **{"torch_peak_bytes": torch_bytes, "scratch_peak_bytes": scratch, "peak_rss_bytes": rss},
        "extra_bytes": torch_bytes + scratch - kept,
    }
