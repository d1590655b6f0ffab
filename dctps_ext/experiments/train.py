"""Train one network, DCTpS or a competitor; a killed run resumes from its last epoch's checkpoint.

Recipe: Adam, which the authors' README trains DCTpS networks with, or SGD with momentum 0.9; weight decay
5e-4 on every parameter, also the authors'; the learning rate rises linearly to `--lr` over the first 5% of
the steps and falls to zero along a cosine over the rest (the runs here are short, so there are no plateaus
for step drops); channels normalised by the training set; CIFAR-10 augmented by random crops and flips. All
methods share it, but for a peak learning rate of their own, chosen on a fifth of the training set held out.
"""

import argparse
import dataclasses
import logging
import math
import pickle
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

import dctps_ext
from dctps_ext import pruning, subspace

from . import data
from .record import environment, use_threads, write_atomically, write_json

logger = logging.getLogger(__name__)

METHODS = ("dctps", "sparse", "dense", "hyperplane", *pruning.METHODS)
ALLOCATED = ("dctps", "sparse")
OPTIMIZERS = ("adam", "sgd")
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARM_UP = 0.05  # share of all steps
EVALUATION_BATCH = 500
# What a run takes where the command line is silent.
EPOCHS = {"digits": 60, "cifar10": 5}
BATCH_SIZE = {"digits": 64, "cifar10": 128}
# The best for each with Adam among 0.003, 0.01, 0.02 and 0.03 on held-out training images: digits by the mean
# of three seeds, CIFAR-10 by one; "hyperplane" among 0.03, 0.1 and 0.3. `pruning.METHODS` take the rate of
# "sparse".
LR = {
    "digits": {"dctps": 0.03, "sparse": 0.02, "dense": 0.01, "hyperplane": 0.1},
    "cifar10": {"dctps": 0.03, "sparse": 0.02, "dense": 0.003, "hyperplane": 0.1},
}


@dataclass(frozen=True)
class Settings:
    """Everything that a run's result depends on.

    Attributes:
        dataset: "digits" or "cifar10"; `data`: the directory of CIFAR-10's zips.
        model: a name in `dctps_ext.models`.
        method: "dctps" (convert_ with the DCT offset), "sparse" (convert_ without it, values drawn anew),
            "dense" (as it is), "hyperplane" (trained in a random subspace, Fastfood's, of as many dimensions
            as the others have values), or one of `pruning.METHODS` (the dense network so pruned, with its
            values).
        density: share of the weights that are trainable, in [0, 1]; None for a dense network.
        allocation: how the layers of "dctps" and "sparse" share it; None for the others.
        optimizer: "adam" or "sgd" (with momentum 0.9).
        epochs, batch_size: positive; lr: peak learning rate, positive; seed: of weights, supports and
        batches.
        threads: torch threads; a setting because a library may sum in another order on another number of
        them.
        rigl: steps from one update of the supports by RigL to the next; None: the supports are fixed.

    Raises:
        ValueError: a value outside what is said above.
    """

    dataset: str
    data: str | None
    model: str
    method: str
    density: float | None
    allocation: str | None
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    seed: int
    threads: int
    rigl: int | None = None

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {self.method!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        for name in ("epochs", "batch_size", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr: expected a positive number, got {self.lr}")
        if self.method != "dense" and (self.density is None or not 0 <= self.density <= 1):
            raise ValueError(
                f"density: expected a number in [0, 1] for method {self.method}, got {self.density}"
            )
        if self.rigl is not None and self.rigl < 1:
            raise ValueError(f"rigl: expected at least 1, got {self.rigl}")
        for name, wanted in (
            ("density", self.method != "dense"),
            ("rigl", self.rigl is not None and self.method not in ("dense", "hyperplane")),
            ("allocation", self.method in ALLOCATED),
        ):
            value = getattr(self, name)
            if (value is not None) != wanted:
                expected = "a value" if wanted else "None"
                raise ValueError(f"{name}: expected {expected} for method {self.method}, got {value}")

    @property
    def title(self):
        """A short name for progress bars and tables."""
        name = self.method if self.rigl is None else f"{self.method}+rigl"
        return name if self.density is None else f"{name} {self.density:.3g}"


def build_model(settings, dataset, counts=None):
    """The network that `settings` describe, freshly initialised from torch's global random state.

    A plain sparse layer gets values ~ N(0, 2 m / nnz), He's initialisation for its mean fan-in nnz/m. That
    makes it a fair baseline: with the dense layer's own weights on the support, which is what `convert_` and
    `pruning` leave, a LeNet-5 at 1% density passes so little signal that it stays at chance.

    DCTpS and plain sparse networks that have no other parameters never exist in dense form.

    Args:
        settings: `Settings`.
        dataset: the `data.Dataset`; pruning methods that look at data see its training images.
        counts: layer name -> nonzeros, to get a network of a pruning method into which a state dict that has
            them can be loaded, without pruning again.

    Raises:
        ValueError: `dctps_ext.models` has no such model.
        PruningBreakdown: a pruning method finds no network of this density.
    """
    if settings.model not in dctps_ext.models.__all__:
        names = ", ".join(dctps_ext.models.__all__)
        raise ValueError(f"model: expected one of {names}, got {settings.model!r}")
    make = partial(getattr(dctps_ext.models, settings.model), num_classes=dataset.num_classes)
    if settings.method in ALLOCATED:
        return _allocated(settings, make)
    model = make()
    if settings.method == "dense":
        return model
    if settings.method == "hyperplane":
        k = sum(dctps_ext.allocate(model, settings.density).values())
        return subspace.HyperplaneProjection(model, k, "fastfood", settings.seed)
    if counts is None:
        masks = _masks(settings, dataset, model)
    else:
        masks = {name: _first(model.get_submodule(name).weight, nnz) for name, nnz in counts.items()}
    logger.debug("%s", pruning.sparsify_(model, masks))
    return model


def _allocated(settings, make):
    def convert(model):
        offset = "dct" if settings.method == "dctps" else "none"
        return dctps_ext.convert_(
            model, settings.density, settings.allocation, offset=offset, seed=settings.seed
        )

    with torch.device("meta"):
        model = make()
    report = convert(model)
    layers = [m for m in model.modules() if isinstance(m, (dctps_ext.DCTpSLinear, dctps_ext.DCTpSConv2d))]
    own = {tensor for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    if own.issuperset((*model.parameters(), *model.buffers())):
        model.to_empty(device="cpu")
        for layer in layers:
            layer.reset_parameters()
    else:  # the others have initial values that only the model itself knows
        model = make()
        report = convert(model)
        layers = [model.get_submodule(layer.name) for layer in report.layers]
    logger.debug("%s", report)
    if settings.method == "sparse":
        for layer in layers:
            if layer.nnz:
                torch.nn.init.normal_(layer.values, std=math.sqrt(2 * layer.support.shape[0] / layer.nnz))
    return model


def _masks(settings, dataset, model):
    def train(network):
        _Run(dataclasses.replace(settings, rigl=None), dataset, None, False, network).finish()

    return pruning.prune(
        model,
        settings.density,
        settings.method,
        _TrainingBatches(dataset, settings.batch_size),
        train_fn=train if settings.method == "imp" else None,
        seed=settings.seed,
    )


def _first(weight, nnz):
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask.view(-1)[:nnz] = True
    return mask


class _TrainingBatches:
    """The training set in batches (inputs, targets), in a new order, from torch's random state, each time."""

    def __init__(self, dataset, batch_size):
        self.dataset = dataset
        self.batch_size = batch_size

    def __iter__(self):
        for batch in torch.randperm(len(self.dataset.train_labels)).split(self.batch_size):
            yield self.dataset.normalise(self.dataset.train_images[batch]), self.dataset.train_labels[batch]


def lr_factor(step, steps):
    """The learning rate of step `step` (from 0) over its peak: linear warm-up, then a cosine to zero."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def initialise(settings, dataset):
    """The network that `run` trains, from the same random state, which for the caller stays as it was."""
    with use_threads(settings.threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return build_model(settings, dataset)


def run(settings, checkpoint=None, progress=True, dataset=None, model=None):
    """Train and test one network.

    Args:
        settings: `Settings`.
        checkpoint: path written after every epoch, whole or not at all. Where it exists the run goes on from
            it, and ends with the bits of a run that was never interrupted.
        progress: show a progress bar.
        dataset: a `data.Dataset` already loaded from `settings`, to share it between runs.
        model: what `initialise` gave for `settings`, to save doing it again.

    Returns:
        A dict: `settings`, `parameters` (trainable scalars), `bytes` (parameters and buffers in memory),
        `held` (bytes of the `parameters`, the `optimizer`'s state and the `index` of the supports, or U of a
        hyperplane),
        `test_accuracy` (after the last epoch, in [0, 1]), `seconds` (training, without the tests), `history`
        (a dict per epoch).

    Raises:
        ValueError: `checkpoint` belongs to other settings, or is no checkpoint.
        FloatingPointError: the loss became infinite or NaN.
    """
    if dataset is None:
        dataset = data.load(settings.dataset, settings.data)
    # The weights come from the global random state; forking leaves the caller's as it was.
    with use_threads(settings.threads), torch.random.fork_rng(devices=[]):
        return _Run(settings, dataset, checkpoint, progress, model).finish()


class _Run:
    """The state of one run: all that a checkpoint holds, and the data."""

    def __init__(self, settings, dataset, checkpoint, progress, model=None):
        self.settings = settings
        self.dataset = dataset
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.progress = progress
        torch.manual_seed(settings.seed)
        self.generator = torch.Generator().manual_seed(settings.seed)  # order of batches, crops and flips
        saved = None
        if self.checkpoint is not None and self.checkpoint.exists():
            saved = self._read()
        self.model = build_model(settings, dataset, saved and saved["counts"]) if model is None else model
        self.steps = math.ceil(len(dataset.train_labels) / settings.batch_size)
        parameters = self.model.parameters()
        if settings.optimizer == "adam":
            self.optimizer = torch.optim.Adam(parameters, settings.lr, weight_decay=WEIGHT_DECAY)
        else:
            self.optimizer = torch.optim.SGD(
                parameters, settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
            )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: lr_factor(step, self.steps * settings.epochs)
        )
        self.rigl = None
        if settings.rigl is not None:
            steps = self.steps * settings.epochs
            self.rigl = pruning.RigL(self.model, self.optimizer, steps, interval=settings.rigl)
        self.history = []
        if saved is not None:
            self._restore(saved)

    def finish(self):
        bar = tqdm(
            total=self.steps * self.settings.epochs,
            initial=self.steps * len(self.history),
            desc=self.settings.title,
            unit="step",
            disable=not self.progress,
            mininterval=0.5,
        )
        with bar:
            while len(self.history) < self.settings.epochs:
                self._epoch(bar)
                if self.checkpoint is not None:
                    self._save()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        held = [*self.model.parameters(), *self.model.buffers()]
        state = [t for entry in self.optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]
        return {
            "settings": dataclasses.asdict(self.settings),
            "parameters": sum(p.numel() for p in parameters),
            "bytes": _bytes(held),
            "held": {
                "parameters": _bytes(self.model.parameters()),
                "optimizer": _bytes(state),
                "index": self._index_bytes(),
            },
            "test_accuracy": self.history[-1]["test_accuracy"],
            "seconds": sum(entry["seconds"] for entry in self.history),
            "history": self.history,
        }

    def _index_bytes(self):
        if isinstance(self.model, subspace.HyperplaneProjection):
            return self.model.bytes_held()["U"]
        return _bytes(layer.support.index for layer in self._supported().values())

    def _supported(self):
        return {name: module for name, module in self.model.named_modules() if hasattr(module, "support")}

    def _epoch(self, bar):
        start, total, correct = time.perf_counter(), 0.0, 0
        self.model.train()
        labels = self.dataset.train_labels
        order = torch.randperm(len(labels), generator=self.generator)
        for batch in order.split(self.settings.batch_size):
            images = self.dataset.train_images[batch]
            if self.dataset.augment:
                images = data.crop_and_flip(images, self.generator)
            output = self.model(self.dataset.normalise(images))
            loss = F.cross_entropy(output, labels[batch])
            self.optimizer.zero_grad()
            loss.backward()
            (self.rigl or self.optimizer).step()
            self.scheduler.step()
            total += loss.item() * len(batch)
            correct += (output.argmax(1) == labels[batch]).sum().item()
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"the loss of {self.settings.title} is not finite in epoch {len(self.history) + 1}: "
                    f"lr {self.settings.lr} is too high for it"
                )
            bar.update()
        entry = {
            "epoch": len(self.history) + 1,
            "train_loss": total / len(labels),
            "train_accuracy": correct / len(labels),
            "seconds": time.perf_counter() - start,
            "test_accuracy": self._test(),
        }
        self.history.append(entry)
        bar.set_postfix(loss=f"{entry['train_loss']:.3f}", test=f"{100 * entry['test_accuracy']:.1f}%")

    @torch.no_grad()
    def _test(self):
        self.model.eval()
        correct = 0
        images, labels = self.dataset.test_images, self.dataset.test_labels
        for part, target in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            correct += (self.model(self.dataset.normalise(part)).argmax(1) == target).sum().item()
        return correct / len(labels)

    def _key(self):
        # Where the data lies does not change a result; all else does.
        return {k: v for k, v in dataclasses.asdict(self.settings).items() if k != "data"}

    def _save(self):
        state = {
            "settings": self._key(),
            "counts": {name: layer.nnz for name, layer in self._supported().items()},
            "rigl": self.rigl and self.rigl.state_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "torch_rng": torch.get_rng_state(),
            "history": self.history,
        }
        write_atomically(self.checkpoint, lambda file: torch.save(state, file))

    def _read(self):
        """The checkpoint's content, of these very settings."""
        try:
            state = torch.load(self.checkpoint, weights_only=True)
            settings = state["settings"]
        except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
            raise ValueError(
                f"checkpoint: expected a checkpoint of this trainer in {self.checkpoint}"
            ) from error
        for name, value in self._key().items():
            if settings.get(name) != value:
                raise ValueError(
                    f"{name}: the checkpoint {self.checkpoint} was made with {settings.get(name)!r}, this "
                    f"run has {value!r}; give the same {name}, or another --checkpoint"
                )
        return state

    def _restore(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch_rng"])
        if self.rigl is not None:
            self.rigl.load_state_dict(state["rigl"])
        self.history = state["history"]
        logger.info("resuming %s after epoch %d", self.checkpoint, len(self.history))


def _bytes(tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def add_arguments(parser):
    """Add the options that one run and a comparison of several share."""
    parser.add_argument("--dataset", choices=data.NAMES, default="digits")
    parser.add_argument("--data", metavar="DIR", help="directory of cifar10-train.zip and cifar10-test.zip")
    parser.add_argument("--model", default="lenet5", help="a network of dctps_ext.models (default: lenet5)")
    parser.add_argument("--allocation", default="epl", help="epl, epf, uniform or erk (default: epl)")
    parser.add_argument(
        "--epochs", type=int, help=f"passes over the training set (default: {_listed(EPOCHS)})"
    )
    parser.add_argument("--batch-size", type=int, help=f"images a step (default: {_listed(BATCH_SIZE)})")
    lrs = "; ".join(f"{dataset} {_listed(lr)}" for dataset, lr in LR.items())
    parser.add_argument("--lr", type=float, help=f"peak learning rate (default: {lrs})")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="default: adam")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice"
    )
    parser.add_argument("--out", metavar="JSON", help="write settings, history and result here")


def _listed(defaults):
    return ", ".join(f"{name} {value}" for name, value in defaults.items())


def settings_from(arguments, method, density, rigl=None):
    """`Settings` of one run from parsed `add_arguments` options."""

    def chosen(value, default):
        return default if value is None else value

    dataset = arguments.dataset
    return Settings(
        dataset=dataset,
        data=arguments.data,
        model=arguments.model,
        method=method,
        density=None if method == "dense" else density,
        allocation=arguments.allocation if method in ALLOCATED else None,
        epochs=chosen(arguments.epochs, EPOCHS[dataset]),
        batch_size=chosen(arguments.batch_size, BATCH_SIZE[dataset]),
        optimizer=arguments.optimizer,
        lr=chosen(arguments.lr, LR[dataset].get(method, LR[dataset]["sparse"])),
        seed=arguments.seed,
        threads=arguments.threads,
        rigl=rigl,
    )


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m dctps_ext.experiments.train", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--method", choices=METHODS, default="dctps")
    parser.add_argument("--density", type=float, default=0.01, help="unused by dense (default: 0.01)")
    parser.add_argument("--rigl", type=int, metavar="STEPS", help="move the supports by RigL so often")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="written after every epoch; resumed from where it exists"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with logging_redirect_tqdm():
        try:
            result = run(
                settings_from(arguments, arguments.method, arguments.density, arguments.rigl),
                arguments.checkpoint,
            )
        except (ValueError, FileNotFoundError, pruning.PruningBreakdown) as error:
            parser.error(str(error))
    print(
        f"{result['settings']['model']} {arguments.method} on {arguments.dataset}: "
        f"test accuracy {100 * result['test_accuracy']:.2f}%, {result['parameters']} trainable parameters, "
        f"{result['seconds']:.1f} s of training on {arguments.threads} threads"
    )
    if arguments.out:
        write_json(arguments.out, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
