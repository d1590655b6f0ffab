"""Checks at import that this build of dctps_ext fits the Python and the torch it runs under; then loads `_C`.

`_C` is compiled against one torch, whose C++ interface has no stable ABI: under another torch it would end in
an undefined symbol, or in wrong results. So setup.py bakes the version into `_build_info.py`, and this
module, the first that the package imports, compares. The whole version must agree, local tag included:
2.13.0+cpu and 2.13.0+cu130 are different binaries, and a build for the first has no CUDA kernels.
"""

import importlib
import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# The folder of `_C` and its _build_info.py. The tests load other builds than the package's: DCTPS_EXTENSION
# names their `_C`.
BUILD = Path(os.environ["DCTPS_EXTENSION"]).resolve().parent if "DCTPS_EXTENSION" in os.environ else PACKAGE
# A source tree has setup.py beside the package; an installed package has not.
IN_SOURCE_TREE = (PACKAGE.parent / "setup.py").is_file()


def rebuild_command() -> str:
    """The command that builds what was imported anew, for the Python that is running."""
    if IN_SOURCE_TREE:
        return f"cd {PACKAGE.parent} && {sys.executable} -m pip install --no-build-isolation -e ."
    return (
        f"{sys.executable} -m pip install --no-build-isolation --no-deps --no-cache-dir --force-reinstall "
        "<the dctps_ext source folder or URL>"
    )


def is_here(module: str) -> bool:
    """Whether the build's folder holds dctps_ext.<module>; an import could find another tree's."""
    return PathFinder.find_spec(f"dctps_ext.{module}", [str(BUILD)]) is not None


def import_here(module: str):
    """dctps_ext.<module> from the build's folder, which need not be the package's."""
    spec = PathFinder.find_spec(f"dctps_ext.{module}", [str(BUILD)])
    loaded = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def installed_elsewhere() -> Path | None:
    """Another folder on sys.path with a built dctps_ext, which the one being imported hides."""
    for entry in sys.path:
        other = Path(entry or ".").resolve() / "dctps_ext"
        if other != PACKAGE and (other / "_build_info.py").is_file():
            return other
    return None


def not_built() -> ImportError:
    """The error for a package without its compiled part."""
    if IN_SOURCE_TREE and (other := installed_elsewhere()):
        return ImportError(
            f"dctps_ext was imported from its source tree, {PACKAGE}, which hides the installed package in "
            f"{other}: run Python from another folder, or build the source tree: {rebuild_command()}"
        )
    return ImportError(
        f"dctps_ext is not built: {BUILD} has no compiled module. Build it: {rebuild_command()}"
    )


def summary() -> str:
    """One line on what was built: torch, instruction sets, CUDA or why not; `make build` ends with it."""
    info = importlib.import_module("dctps_ext._build_info")
    cuda = f"CUDA {info.CUDA} for {info.CUDA_ARCHS}" if info.CUDA else f"CPU only: {info.CPU_ONLY_BECAUSE}"
    return f"built for torch {info.TORCH}; {'/'.join(info.ISAS)}; {cuda}"


def load():
    """Check, then import `_C`. Every ImportError says what is wrong and the command that mends it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"dctps_ext needs PyTorch, and that fails ({error}): pip install torch") from error
    if not is_here("_build_info"):
        raise not_built()
    info = import_here("_build_info")
    if sys.implementation.cache_tag != info.PYTHON:
        raise ImportError(
            f"dctps_ext was built for {info.PYTHON}, but this is {sys.implementation.cache_tag}: "
            f"rebuild with: {rebuild_command()}"
        )
    if str(torch.__version__) != info.TORCH:
        raise ImportError(
            f"dctps_ext was built for torch {info.TORCH}, but torch {torch.__version__} is installed: "
            f"rebuild with: {rebuild_command()}"
        )
    if not is_here("_C"):
        raise not_built()
    try:
        return import_here("_C")
    except ImportError as error:
        raise ImportError(
            f"dctps_ext's compiled module does not load ({error}): rebuild with: {rebuild_command()}"
        ) from error


_C = load()
