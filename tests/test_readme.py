"""The README keeps its word: its code runs, its output is what is printed, what it names is there."""

import contextlib
import importlib
import io
import re

import pytest
import torch
from PIL import Image

import dctps_ext
from benchmarks import readme, results
from tests import checks, test_ops_conv, test_ops_linear
from tests.markdown import PAGES, ROOT, codes

PAGE = PAGES[0]
README, BLOCKS = PAGE.text, PAGE.blocks


# ---- code


def test_python_blocks_run_in_order_and_print_what_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them saves a file
    names, printed = {}, None
    for language, text in BLOCKS:
        if language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(text, "README.md", "exec"), names)
            printed = printed.getvalue()
        elif language == "text":
            assert printed == text  # what the block before it printed
    assert names["y"].shape == names["s"].shape == names["u"].shape == (128, 1000)
    assert isinstance(names["plain"].fc1, torch.nn.Linear)


def test_every_printed_output_follows_its_code():
    languages = [language for language, _ in BLOCKS]
    assert languages.count("python") >= 5 and languages.count("text") == 3
    assert all(languages[i - 1] == "python" for i, language in enumerate(languages) if language == "text")


def test_the_first_screen_is_claim_commands_figure_table_quickstart():
    assert [language for language, _ in BLOCKS[:2]] == ["bash", "python"]
    assert len(BLOCKS[0][1].splitlines()) == 3 and len(BLOCKS[1][1].splitlines()) <= 10
    for command in ("make demo", "make test", "pip install --no-build-isolation"):
        assert command in BLOCKS[0][1]
    assert README.index(BLOCKS[2][1]) < README.index("\n## ")
    figure, table, code = (README.index(text) for text in ("\n![", "<!-- measured -->", BLOCKS[1][1]))
    assert README.index(BLOCKS[0][1]) < figure < table < code


# ---- names


def test_every_path_in_the_map_exists():
    paths = [path for first, _ in PAGE.cells("Where things are") for path in codes(first)]
    assert len(paths) > 25
    for path in paths:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path


def test_the_map_misses_no_source_file():
    paths = {path for first, _ in PAGE.cells("Where things are") for path in codes(first)}
    places = (("dctps_ext", "**/*.py"), ("benchmarks", "*.py"), ("tools", "*.py"), ("csrc", "**/*.c*"))
    sources = [path for folder, glob in places for path in (ROOT / folder).glob(glob)]
    for source in sources:
        path = source.relative_to(ROOT)
        if path.name not in ("__init__.py", "_build_info.py"):
            above = {f"{parent.as_posix()}/" for parent in path.parents}
            assert path.as_posix() in paths or above & paths, path


def test_every_public_name_that_is_named_exists():
    named = set(re.findall(r"dctps_ext\.(\w+)", "".join(text for lang, text in BLOCKS if lang == "python")))
    named |= {code for code in PAGE.inline if code in ("convert_", "allocate", "to_dense")}
    assert {"convert_", "dctps_linear", "Support"} <= named - {"_load"} <= set(dctps_ext.__all__)


# ---- promises


def test_every_promise_names_a_test_that_exists():
    rows = PAGE.cells("What is exact")
    unchecked = [row[0] for row in rows if len(row) < 2 or not (codes(row[1]) or row[1] == "same")]
    assert len(rows) > 15 and len(unchecked) == 1 and "*not* promised" in unchecked[0]
    for test in (test for row in rows for cell in row[1:] for test in codes(cell)):
        path, name = test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), test


def test_the_dtypes_and_accuracies_are_those_of_the_tests():
    for dtype in checks.DTYPES:
        assert str(dtype).removeprefix("torch.") in PAGE.section("Limits")
    bounds = (ROOT / "tests" / "checks.py").read_text(encoding="utf-8")
    assert all(bound in bounds and bound in PAGE.section("What is exact") for bound in ("1e-12", "2e-6"))
    assert max(test_ops_linear.SIZES) == 4608 and min(test_ops_linear.SIZES) == 1
    kernels = {kernel for _, _, kernel, _ in test_ops_conv.GEOMETRIES.values()}
    assert {(1, 1), (11, 9)} <= kernels


def test_limits_are_where_they_are_said_to_be():
    """They are here so that whoever lifts a limit takes it out of the README too."""
    ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("dctps_ext::")]
    assert len(ops) >= 9
    with_cuda = importlib.import_module("dctps_ext._build_info").CUDA is not None
    for op in ops:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CPU")
        on_gpu = with_cuda and "conv2d" not in op
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA") == on_gpu, op
    assert dctps_ext.Support.random(5, 5, 3).index.dtype == torch.int32
    x = torch.randn(3, 8)
    with pytest.raises(ValueError, match=f"expected a size from 1 to {2**28}, got"):
        dctps_ext.dct(x, 2**28 + 1)
    with pytest.raises(RuntimeError):
        torch.func.grad(lambda x: dctps_ext.dct(x).sum())(x)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(dctps_ext.dct, (x,), (x,))
    assert torch.equal(torch.vmap(dctps_ext.dct)(x), dctps_ext.dct(x))


def test_figure_and_table_are_those_of_the_committed_result():
    result = results.read(readme.RESULT)
    assert readme.BLOCK.search(README)[0].splitlines()[1:-1] == readme.table(result).splitlines()
    shown = re.search(r"^!\[[^\]]*\]\((.*?)\)", README, re.M)[1]
    assert ROOT / shown == readme.FIGURE
    with Image.open(readme.FIGURE) as picture:
        assert picture.text["Source"] == f"{readme.RESULT.name} sha256 {readme.digest(readme.RESULT)}"
    record = result["environment"]
    assert record["device"] and record["versions"]["torch"] and record["commit"] and record["command"]
