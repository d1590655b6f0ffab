"""docs/ keeps its word: its code runs, its links lead somewhere, the API page is that of the docstrings."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def load(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs_block_after_block(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_files_that_are_named_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (DOCS / target).exists(), target
    for path in re.findall(r"`((?:csrc|dctps_ext|tests|benchmarks|docs)/[\w./]*)`", text):
        assert (DOCS.parent / path).exists(), path


def test_the_api_page_is_that_of_the_docstrings():
    writer = load("write_api")
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run python docs/write_api.py"


def test_every_figure_is_shown_and_every_page_is_listed():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for figure in (DOCS / "figures").glob("*.png"):
        assert f"(figures/{figure.name})" in text, figure
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, page
