"""Writes docs/api.md from the docstrings of everything public: `python docs/write_api.py`."""

import importlib.util
import inspect
import re
from pathlib import Path

import dctps_ext

PAGE = Path(__file__).with_name("api.md")
# Submodules with an API of their own; what else is public is in dctps_ext.__all__.
MODULES = [
    name
    for name in ("models", "pruning", "subspace", "analysis")
    if importlib.util.find_spec(f"dctps_ext.{name}")
]


def cleaned(docstring):
    """A docstring as Markdown: no RST roles, argument lists as they stand."""
    text = inspect.cleandoc(docstring)
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"^\.\. math::\n", "", text, flags=re.M)
    # What follows such a heading is indented, and Markdown keeps it as it stands.
    return re.sub(r"^(Args|Returns|Raises|Attributes|Yields):$", r"**\1**\n", text, flags=re.M)


def signature(name, item):
    try:
        text = str(inspect.signature(item))
    except (TypeError, ValueError):
        return name
    text = re.sub(r" at 0x[0-9a-f]+", "", text).replace("'", "")
    return name + re.sub(
        r"\b(torch\.nn\.modules\.module\.|collections\.abc\.|dctps_ext\.\w+\.|torch\.)(?=[A-Z])", "", text
    )


def entry(name, item, level):
    lines = ["#" * level + f" `{name}`", "", "```text", signature(name, item), "```", ""]
    lines += [cleaned(item.__doc__ or ""), ""]
    if inspect.isclass(item):
        for member, value in vars(item).items():
            function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
            if member.startswith("_") or not (callable(function) or isinstance(function, property)):
                continue
            if function.__doc__:
                lines += entry(f"{name.split('.')[-1]}.{member}", function, level + 1)
    return lines


def page():
    """The whole text of docs/api.md."""
    lines = ["# API", "", "Written by `python docs/write_api.py` from the docstrings: change those.", ""]
    for name in sorted(dctps_ext.__all__, key=str.lower):
        item = getattr(dctps_ext, name)
        if callable(item):
            lines += entry(f"dctps_ext.{name}", item, 2)
    for module_name in MODULES:
        module = importlib.import_module(f"dctps_ext.{module_name}")
        lines += [f"## `dctps_ext.{module_name}`", "", cleaned(module.__doc__), ""]
        for name in getattr(module, "__all__", []):
            item = getattr(module, name)
            if callable(item):
                lines += entry(f"dctps_ext.{module_name}.{name}", item, 3)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
