"""Storage of a network by method, measured: the paper's Table 1 in bytes.

Of each method: the most bytes held while the network is made (`initialisation_bytes`), what training holds
between steps, that is parameters, gradients, Adam's state and the supports' indices (`training_bytes`), and
what is saved at the end (`final_bytes`: the state dict, in which a random support is its seed).
"""

from dataclasses import asdict

import torch
import torch.nn.functional as F

import dctps_ext

from .problems import Case, held_bytes
from .timing import peak_bytes

pruning = getattr(dctps_ext, "pruning", None)
PRUNING = () if pruning is None else tuple(m for m in pruning.METHODS if m != "imp")  # which trains to prune
NAMES = {
    "dense": "dense",
    "dctps": "DCTpS",
    "sparse": "random sparse",
    "uniform": "Sparse (uniform)",
    "epl": "Sparse (EPL)",
    "epf": "Sparse (EPF)",
    "erk": "Sparse (ERK)",
    "snip": "SNIP",
    "grasp": "GraSP",
    "force": "FORCE",
    "iter_snip": "Iter-SNIP",
    "synflow": "SynFlow",
}
METHODS = ("dense", "dctps", *(PRUNING or ("sparse",)))


def make(case: Case, method: str):
    """The network, ready to train, as a user would make it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(dctps_ext.models, case.model)(num_classes=10)
    if method in PRUNING:
        masks = pruning.prune(model, case.density, method, [_batch(case)])
        pruning.sparsify_(model, masks)
    elif method != "dense":
        dctps_ext.convert_(model, case.density, offset="dct" if method == "dctps" else "none")
    return model


def _batch(case):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(case.batch, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (case.batch,), generator=generator)


def measure(case: Case, method: str):
    """(rows, notes): one row, or why the method has none, as where it breaks down at this density."""
    try:
        initialisation = peak_bytes(lambda: make(case, method))
        model = make(case, method)
    except getattr(pruning, "PruningBreakdown", ()) as breakdown:
        return [], [f"storage, {case.model} at {100 * case.density:g}%: {breakdown}"]
    final = held_bytes(*(t for t in model.state_dict().values() if torch.is_tensor(t)))
    optimizer = torch.optim.Adam(model.parameters())
    images, labels = _batch(case)
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    state = [t for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]
    parameters = list(model.parameters())
    training = held_bytes(*parameters, *model.buffers(), *(p.grad for p in parameters), *state)
    row = {
        **asdict(case),
        **{"q": 0, "nnz": sum(p.numel() for p in parameters), "pass": method, "peer": NAMES[method]},
        **{"note": "nnz: trainable scalars", "initialisation_bytes": initialisation},
        **{"training_bytes": training, "final_bytes": final},
    }
    return [row], []
