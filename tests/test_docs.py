"""README and docs/ keep their word: code runs, links lead somewhere, names are there, errors are real."""

import re
from pathlib import Path

import pytest
import torch

import dctps_ext
from tests.checks import import_file
from tests.markdown import PAGES, ROOT, Page, codes

DOCS = ROOT / "docs"
INSTALL = Page("docs/install.md")
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.path.stem)
def test_code_runs_block_after_block(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, text in page.blocks:
        if language == "python":
            exec(compile(text, str(page.path), "exec"), names)


# ---- names


@EACH_PAGE
def test_links_and_files_that_are_named_exist(page):
    for target, heading in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.text):
        if not target.startswith("https://"):
            file = page.path.parent / target if target else page.path
            assert file.exists(), target
            if heading:
                headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
                anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings]
                assert heading in anchors, heading
    for path in page.inline:
        if re.fullmatch(r"(csrc|dctps_ext|tests|benchmarks|docs|tools)/[\w./]*", path):
            assert (ROOT / path).exists(), path


@EACH_PAGE
def test_every_make_target_that_is_named_exists(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in [*page.inline, *page.shell.splitlines()]:
        if match := re.match(r"make ([a-z-]+)", command):
            assert re.search(rf"^{match[1]}:", makefile, re.M), command


def reads(name):
    """Whether something in the repository reads the variable: a mention in a comment does not count."""
    q = r"[\"']"  # setup.py, the package: a string of its own
    patterns = {
        "Makefile": rf"\$\({name}\)|\$\${name}\b",
        "setup.py": f"{q}{name}{q}",
        "dctps_ext/**/*.py": rf"environ\b.*{q}{name}{q}",
        "csrc/**/*.cpp": rf'getenv\("{name}"\)',
    }
    return {
        glob
        for glob, pattern in patterns.items()
        for path in ROOT.glob(glob)
        if re.search(pattern, path.read_text(encoding="utf-8"))
    }


def test_every_environment_variable_that_is_listed_is_read():
    rows = INSTALL.cells("Environment variables")
    building = {name for first, when, _ in rows if when == "building" for name in codes(first)}
    running = {name for first, when, _ in rows if when == "running" for name in codes(first)}
    assert "DCTPS_FORCE_CPU" in building and running == {"DCTPS_ISA"}
    torchs = Path(torch.utils.__file__).with_name("cpp_extension.py").read_text(encoding="utf-8")
    for name in building:  # setup.py leaves some of them to torch's half of the build
        assert "setup.py" in reads(name) or re.search(rf"environ\.get\('{name}'", torchs), name
    for name in running:
        assert reads(name) & {"csrc/**/*.cpp", "dctps_ext/**/*.py"}, name


@EACH_PAGE
def test_every_variable_that_a_command_sets_is_read(page):
    for name in re.findall(r"\b([A-Z][A-Z_]+)=", page.shell + " ".join(page.inline)):
        assert reads(name), name


# ---- figures


def test_the_constants_of_autos_rule_are_those_of_the_source():
    source = (ROOT / "csrc" / "fused" / "dense_form.cpp").read_text(encoding="utf-8")
    costs = re.search(r"^struct Costs \{$(.*?)^\};", source, re.M | re.S)[1]
    constants = {float(value) for value in re.findall(r"\w+ = ([\d.]+)", costs)} | {16.0}  # rows of a tile
    rule = re.search(r"^    linear\n(?:    .*\n|\n)+", Page("docs/performance.md").text, re.M)[0]
    others = {1.0, 2.0, 3.0}  # an entry's nanosecond, products and nonzeros of the backward pass
    assert constants - others == {float(value) for value in re.findall(r"\d+(?:\.\d+)?", rule)} - others


# ---- errors


def provoked():
    """Messages that are put together at run time, so that no source file has them whole, and torch's."""
    layer = dctps_ext.DCTpSLinear(8, 8, density=0.5)
    twin = dctps_ext.DCTpSLinear(8, 8, density=0.25)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
    for call in (
        lambda: layer(torch.randn(2, 8).double()),
        lambda: dctps_ext.dct(torch.eye(4).to_sparse()),  # as a CUDA tensor: a backend without kernels
        lambda: torch.func.grad(lambda x: dctps_ext.dct(x).sum())(torch.randn(3)),
        lambda: dctps_ext.convert_(torch.nn.Sequential(normed)),
        lambda: layer.load_state_dict(twin.state_dict()),
        lambda: layer.load_state_dict(torch.nn.Linear(8, 8).state_dict()),
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
            call()
        yield f"{caught.typename}: {caught.value}"


def test_every_error_that_is_listed_exists():
    folders = ("setup.py", "Makefile", "tools/*.py", "dctps_ext/**/*.py", "csrc/**/*.cpp", "csrc/**/*.cuh")
    files = [path for glob in folders for path in ROOT.glob(glob)]
    # A message may go on on the next line of the source.
    known = [re.sub(r'"\s+f?"', "", path.read_text(encoding="utf-8")) for path in files] + list(provoked())
    rows = INSTALL.cells("Errors")
    assert len(rows) > 30
    for first, _ in rows:
        for message in codes(first):
            text = message.replace("'CUDA'", "'SparseCPU'")
            assert any(text in source for source in known), message


# ---- pages


def test_the_api_page_is_that_of_the_docstrings():
    writer = import_file("docs/write_api.py")
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run python docs/write_api.py"


def test_every_figure_is_shown_and_every_page_is_listed():
    text = "".join(page.text for page in PAGES)
    for figure in (DOCS / "figures").glob("*.png"):
        assert f"(figures/{figure.name})" in text, figure
    index = Page("docs/README.md").text
    for page in PAGES[1:]:
        assert page.path.name == "README.md" or f"({page.path.name})" in index, page.path
