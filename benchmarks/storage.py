"""Storage of a network by method, measured: the paper's Table 1 in bytes.

Of each method: the most bytes held while the network is made (`initialisation_bytes`), what training holds
between steps, that is parameters, gradients, Adam's state and the supports' indices (`training_bytes`), and
what is saved at the end (`final_bytes`: the state dict, in which a random support is its seed).
"""

from dataclasses import asdict

import torch
import torch.nn.functional as F

from dctps_ext.experiments.compare import NAMES
from dctps_ext.experiments.data import Dataset
from dctps_ext.experiments.train import ALLOCATED, Settings, build_model
from dctps_ext.pruning import PruningBreakdown

from .problems import Case, held_bytes
from .timing import peak_bytes

# "sparse" stores what "epl" does; IMP's masks cost a training run.
METHODS = tuple(method for method in NAMES if method not in ("sparse", "imp"))


def make(case: Case, method: str, dataset: Dataset):
    """The network, ready to train, as the trainer of `make compare` makes it."""
    settings = Settings(
        **{"dataset": "digits", "data": None, "model": case.model, "method": method},
        **{"density": None if method == "dense" else case.density},
        **{"allocation": "epl" if method in ALLOCATED else None, "epochs": 1, "batch_size": case.batch},
        **{"optimizer": "adam", "lr": 0.01, "seed": 0, "threads": case.threads},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model(settings, dataset)


def _random_dataset(case):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (case.batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (case.batch,), generator=generator)
    dataset = Dataset("random pixels", images, labels, images, labels, num_classes=10, augment=False)
    dataset.statistics  # noqa: B018  computed here, not where memory is counted
    return dataset


def measure(case: Case, method: str):
    """(rows, notes): one row, or why the method has none, as where it breaks down at this density."""
    dataset = _random_dataset(case)
    try:
        initialisation = peak_bytes(lambda: make(case, method, dataset))
        model = make(case, method, dataset)
    except PruningBreakdown as breakdown:
        return [], [f"storage, {case.model} at {100 * case.density:g}%: {breakdown}"]
    final = held_bytes(*(t for t in model.state_dict().values() if torch.is_tensor(t)))
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(dataset.normalise(dataset.train_images)), dataset.train_labels).backward()
    optimizer.step()
    state = [t for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]
    parameters = list(model.parameters())
    training = held_bytes(*parameters, *model.buffers(), *(p.grad for p in parameters), *state)
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    row = {
        **asdict(case),
        **{"q": 0, "nnz": trainable, "pass": method, "peer": NAMES[method]},
        **{"note": "nnz: trainable scalars", "initialisation_bytes": initialisation},
        **{"training_bytes": training, "final_bytes": final},
    }
    return [row], []
