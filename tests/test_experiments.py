"""Experiments: data sets, augmentation, and that an interrupted run ends as a straight one."""

import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dctps_ext.experiments import compare, data, demo, record, train

CIFAR10 = Path(__file__).resolve().parents[2] / "shared" / "cifar10"


@pytest.fixture(scope="module")
def tiny():
    """A few digits."""
    digits = data.load("digits")
    return dataclasses.replace(
        digits,
        train_images=digits.train_images[:70],
        train_labels=digits.train_labels[:70],
        test_images=digits.test_images[:20],
        test_labels=digits.test_labels[:20],
        augment=True,  # so that the state of its generator counts too
    )


def settings(**changes):
    values = {
        "dataset": "digits",
        "data": None,
        "model": "lenet5",
        "method": "dctps",
        "density": 0.01,
        "allocation": "epl",
        "epochs": 4,
        "batch_size": 32,
        "optimizer": "adam",
        "lr": 0.01,
        "seed": 3,
        "threads": 1,
    }
    values.update(changes)
    if values["method"] == "dense":
        values.update(density=None)
    if values["method"] not in train.ALLOCATED:
        values.update(allocation=None)
    return train.Settings(**values)


def without_time(result):
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in result["history"]]
    return {**{k: v for k, v in result.items() if k != "seconds"}, "history": history}


def test_digits():
    digits = data.load("digits")
    for images, labels, count in (
        (digits.train_images, digits.train_labels, 1433),
        (digits.test_images, digits.test_labels, 364),
    ):
        assert images.shape == (count, 3, 32, 32) and images.dtype == torch.uint8
        assert labels.shape == (count,) and labels.dtype == torch.int64
        assert images.max() > 240
        share = labels.bincount(minlength=10) / count
        assert (share - 0.1).abs().max() < 0.005  # stratified
    assert digits.num_classes == 10
    again = data.load("digits")
    assert torch.equal(digits.test_images, again.test_images)
    assert torch.equal(digits.test_labels, again.test_labels)


def write_zip(path, classes=("ant", "bee"), size=32):
    from PIL import Image

    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(classes):
            for j in range(3):
                buffer = io.BytesIO()
                pixels = np.full((size, size, 3), 40 * i + 10 * j, dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "PNG")
                archive.writestr(f"{name}/{j:04}.png", buffer.getvalue())


def test_cifar10_reads_a_zip_once_and_again_when_it_changes(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for part in ("train", "test"):
        write_zip(tmp_path / f"cifar10-{part}.zip")
    first = data.load("cifar10", tmp_path)
    assert first.title == "CIFAR-10 (JPEG)" and first.augment
    assert first.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert first.train_images[:, 0, 0, 0].tolist() == [0, 10, 20, 40, 50, 60]

    with monkeypatch.context() as patch:
        patch.setattr(data, "decode_image_zip", lambda path: pytest.fail("decoded twice"))
        assert torch.equal(data.load("cifar10", tmp_path).train_images, first.train_images)
    write_zip(tmp_path / "cifar10-train.zip", classes=("ant", "bee", "cow"))
    assert len(data.load("cifar10", tmp_path).train_labels) == 9


def test_cifar10_errors_say_what_was_expected_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*cifar10-train\.zip.*airplane/0000\.jpg"):
        data.load("cifar10", tmp_path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        data.load("cifar10", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--data DIR"):
        data.load("cifar10")
    with pytest.raises(ValueError, match="dataset: expected one of digits, cifar10, got 'mnist'"):
        data.load("mnist")
    pytest.importorskip("PIL")
    write_zip(tmp_path / "wrong.zip", size=31)
    with pytest.raises(ValueError, match="expected 32x32 images"):
        data.decode_image_zip(tmp_path / "wrong.zip")


@pytest.mark.skipif(not (CIFAR10 / "cifar10-test.zip").is_file(), reason="no ../shared/cifar10 here")
def test_cifar10_itself(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images, labels = data._cifar10_split(CIFAR10, "test")  # the small one: decoding both takes long
    assert images.shape == (10_000, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [1000] * 10
    assert 100 < images.double().mean() < 140


def test_channel_statistics():
    images = torch.randint(
        0, 256, (7, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    mean, deviation = data.channel_statistics(images)
    channels = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), channels.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(deviation.double(), channels.std(1, correction=0), rtol=1e-6, atol=0)


def test_crop_and_flip_gives_shifted_or_mirrored_windows():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (64, 2, 6, 5), dtype=torch.uint8, generator=generator)
    got = data.crop_and_flip(images, generator)
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4))
    seen = set()
    for image, whole in zip(got, padded, strict=True):
        windows = {
            (top, left, flip): window.flip(2) if flip else window
            for top in range(9)
            for left in range(9)
            for window in [whole[:, top : top + 6, left : left + 5]]
            for flip in (False, True)
        }
        matches = [key for key, window in windows.items() if torch.equal(window, image)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 40 and {flip for *_, flip in seen} == {False, True}


@pytest.mark.parametrize(
    "method, rigl", [*zip(train.METHODS[:4], [None] * 4, strict=True), ("snip", 2), ("dctps", 2)]
)
def test_an_interrupted_run_ends_with_the_bits_of_a_straight_one(tmp_path, monkeypatch, tiny, method, rigl):
    changes = {"method": method, "rigl": rigl, "density": 0.02}
    straight = train.run(settings(**changes), tmp_path / "straight.pt", progress=False, dataset=tiny)
    assert len(straight["history"]) == 4

    # Killed in the middle of the third epoch, after two checkpoints.
    step, count = torch.optim.Adam.step, 0

    def killing(self, *arguments, **keywords):
        nonlocal count
        count += 1
        if count == (8 if rigl is None else 5):  # RigL takes every second step
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    path = tmp_path / "killed.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", killing)
        with pytest.raises(KeyboardInterrupt):
            train.run(settings(**changes), path, progress=False, dataset=tiny)
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    monkeypatch.setattr(train.pruning, "prune", lambda *_, **__: pytest.fail("pruned again"))
    resumed = train.run(settings(**changes), path, progress=False, dataset=tiny)

    assert without_time(resumed) == without_time(straight)
    a, b = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("straight", "killed"))
    assert a["model"].keys() == b["model"].keys()
    for name, tensor in a["model"].items():
        assert torch.equal(tensor, b["model"][name]), name
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []  # no temporary file is left


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, tiny):
    first = train.run(settings(epochs=1), tmp_path / "run.pt", progress=False, dataset=tiny)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("trained"))
    assert train.run(settings(epochs=1), tmp_path / "run.pt", progress=False, dataset=tiny) == first


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path, tiny):
    path = tmp_path / "run.pt"
    train.run(settings(epochs=1), path, progress=False, dataset=tiny)
    for change in (
        {"lr": 0.02},
        {"optimizer": "sgd"},
        {"seed": 4},
        {"density": 0.02},
        {"epochs": 2},
        {"method": "sparse"},
    ):
        (name,) = change
        with pytest.raises(ValueError, match=rf"^{name}: the checkpoint .*run\.pt was made with"):
            train.run(settings(**{"epochs": 1, **change}), path, progress=False, dataset=tiny)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="checkpoint: expected a checkpoint of this trainer"):
        train.run(settings(epochs=1), path, progress=False, dataset=tiny)


def test_a_run_leaves_the_callers_random_state_and_threads(tiny):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train.run(settings(epochs=1, threads=threads + 1), progress=False, dataset=tiny)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method: expected one of dctps, .*, hyperplane, .*, imp, got 'magic'"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, sgd, got 'lion'"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"lr": -0.1}, "lr: expected a positive number, got -0.1"),
        ({"density": 1.5}, r"density: expected a number in \[0, 1\]"),
        ({"method": "dense", "rigl": 5}, "rigl: expected None for method dense, got 5"),
        ({"method": "hyperplane", "rigl": 5}, "rigl: expected None for method hyperplane, got 5"),
        ({"rigl": 0}, "rigl: expected at least 1, got 0"),
        ({"allocation": None}, "allocation: expected a value for method dctps, got None"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_imp_trains_its_rounds_without_rigl(tiny):
    both = settings(method="imp", density=0.5, epochs=1, rigl=2)
    plain = dataclasses.replace(both, rigl=None)
    first, second = (train.initialise(one, tiny) for one in (both, plain))
    assert first.conv3.support == second.conv3.support
    assert train.run(both, progress=False, dataset=tiny)["parameters"] == round(0.5 * 61510)


def test_unknown_model_is_refused(tiny):
    with pytest.raises(ValueError, match="model: expected one of .*lenet5.*, got 'run'"):
        train.run(settings(model="run"), progress=False, dataset=tiny)


def test_a_diverging_run_names_the_learning_rate(tiny):
    with pytest.raises(FloatingPointError, match=r"lr 1e\+30 is too high"):
        train.run(settings(method="dense", lr=1e30), progress=False, dataset=tiny)


def test_lr_factor_rises_and_falls():
    factors = [train.lr_factor(step, 100) for step in range(100)]
    assert factors[4] == factors[5] == max(factors) == 1
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in zip(factors[5:], factors[6:], strict=False)) and 0 < factors[-1] < 1e-3
    assert train.lr_factor(0, 1) == 1


def test_train_and_demo_commands(tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.setattr(data, "load", lambda name, directory: tiny)
    common = ["--epochs", "1", "--threads", "1"]
    train.main([*common, "--checkpoint", str(tmp_path / "c.pt"), "--out", str(tmp_path / "train.json")])
    assert "test accuracy" in capsys.readouterr().out
    result = json.loads((tmp_path / "train.json").read_text())
    assert result["settings"]["method"] == "dctps" and len(result["history"]) == 1
    assert set(result["environment"]) >= {"device", "cores", "isa", "versions", "commit", "command", "date"}
    assert result["environment"]["versions"]["torch"] == torch.__version__

    out = tmp_path / "demo.json"
    demo.main([*common, "--densities", "0.01", "0.001", "--checkpoints", str(tmp_path), "--out", str(out)])
    printed = capsys.readouterr().out
    runs = json.loads(out.read_text())["runs"]
    assert [(r["settings"]["method"], r["settings"]["density"]) for r in runs] == [
        ("dctps", 0.01),
        ("sparse", 0.01),
        ("dctps", 0.001),
        ("sparse", 0.001),
        ("dense", None),
    ]
    # K = round(density * 61,510) values, and an alpha for each of the five layers.
    assert [r["parameters"] for r in runs] == [615 + 5, 615, 62 + 5, 62, 61510]
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert printed.count("random sparse") == 2 and "61,510" in printed
    assert (tmp_path / "dctps-0.001.pt").is_file()


def test_compare_command_and_its_resumption(tmp_path, monkeypatch, capsys, tiny):
    monkeypatch.setattr(data, "load", lambda name, directory: tiny)
    few = ("dense", "sparse", "uniform", "snip", "dctps", "hyperplane")
    monkeypatch.setattr(compare, "NAMES", {method: compare.NAMES[method] for method in few})
    out = tmp_path / "out" / "compare.json"
    command = ["--threads", "1", "--densities", "0.02", "0.0004", "--rigl", "2"]
    command += ["--checkpoints", str(tmp_path / "runs"), "--out", str(out)]
    compare.main(command)
    printed = capsys.readouterr().out
    assert out.with_suffix(".md").read_text().strip() == printed.strip()
    runs = json.loads(out.read_text())["runs"]
    assert len(runs) == 1 + 2 * (len(compare.NAMES) - 1 + 2)
    names = [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("| ")][2:]
    assert names[0] == "Dense" and {"DCTpS", "DCTpS + RigL", "SNIP", "Sparse (uniform)"} <= set(names)
    broken = [run for run in runs if "breakdown" in run]
    assert any("layer collapse" in run["breakdown"] for run in broken)
    assert printed.count("breaks down") == len(broken) and {r["settings"]["density"] for r in broken} == {
        4e-4
    }
    for run in runs:
        if "breakdown" in run:
            continue
        held, density = run["held"], run["settings"]["density"]
        count = 61510 if density is None else round(density * 61510)
        alphas = 5 if run["settings"]["method"] == "dctps" else 0
        assert run["parameters"] == count + alphas
        d = 61510 if run["settings"]["method"] == "hyperplane" else 0
        assert held["parameters"] == 4 * (count + alphas + d)
        assert held["index"] >= 9 * d  # Fastfood's signs, order and diagonals
        tensors = 1 if d else 5 + alphas
        assert held["optimizer"] == 8 * (count + alphas) + 4 * tensors  # Adam's, with its steps
        # Dense weights are there while a dense network is pruned, and never in a DCTpS one.
        assert (run["initialisation"]["peak_bytes"] > 4 * 61510) == (
            run["settings"]["method"] not in train.ALLOCATED
        )

    def again(*_, **__):
        pytest.fail("initialised or trained again")

    for settings in compare.plan(compare.parser().parse_args(command)):
        if not any(run["settings"] == dataclasses.asdict(settings) for run in broken):
            with monkeypatch.context() as patch:
                patch.setattr(compare.pruning, "prune", again)
                patch.setattr(torch.optim.Adam, "step", again)
                compare.row(settings, tiny, tmp_path / "runs")


def test_command_line_errors_are_one_sentence(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--dataset", "cifar10"])
    assert ended.value.code == 2
    assert "data: cifar10 needs a directory" in capsys.readouterr().err


def test_write_atomically_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        record.write_atomically(path, fail)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError):
        record.write_json(path, {"x": float("nan")})
    assert path.read_bytes() == b"old"
