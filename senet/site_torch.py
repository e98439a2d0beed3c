"""``SYSTEM_TORCH=1 ./launch.sh``: whether the torch of the Python that runs this will do.

Needs no package but torch and torchvision. Prints their versions, as constraints for pip, and in comments the folders
where they are.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import re
import sys
import tomllib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from senet import REPOSITORY
from senet.distributed.devices import count_gpus
from senet.errors import REFUSED_EXIT_CODE, ConfigError


def find() -> list[str]:
    """The lines that are printed.

    Raises:
        ConfigError: torch or torchvision is missing, too old, too new, or does not start.
    """
    allowed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    torch, lines = None, []
    for name in ("torch", "torchvision"):
        [bounds] = [re.findall(r"\d+\.\d+", rule) for rule in allowed if rule.startswith(f"{name}>=")]
        module = _import(name, beside=torch)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise ConfigError(f"{module.__file__} has no {name}.dist-info beside it, so pip cannot keep it") from None
        low, here, high = ([*map(int, re.findall(r"\d+", each)[:2])] for each in (bounds[0], version, bounds[1]))
        low[1] += 1  # the bound is the version before, and .99
        if not low <= here < high:
            rule = f"{low[0]}.{low[1]} or newer and older than {bounds[1]}"
            raise ConfigError(f"{sys.executable} has {name} {version}; it must be {rule}")
        torch = torch or module
        lines += [f"{name}=={version}", f"# {Path(str(module.__file__)).parent.parent}"]
    check_driver(torch)
    return list(dict.fromkeys(lines))


def _import(name: str, beside: ModuleType | None) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise ConfigError(
                f"{sys.executable} has no {name}; load the site's module first, or name the Python that has it: "
                f"PYTHON=/path/to/python"
            ) from None
        reason: Exception = error
    except (ImportError, OSError, RuntimeError) as error:
        reason = error
    fit = f"does not fit its torch {beside.__version__}" if beside else "does not start"
    raise ConfigError(f"{name} of {sys.executable} {fit}: {' '.join(str(reason).split())[:200]}")


def check_driver(torch: Any) -> None:
    """Whether a build for CUDA starts on the driver of this machine, if there is one: it does if its major version of
    CUDA is the driver's or older. Only a warning where no GPU is, as on a login node."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which is longer
        if not torch.version.cuda or torch.cuda.is_available():
            return
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    number = ctypes.c_int(0)
    code = driver.cuDriverGetVersion(ctypes.byref(number))
    if code or number.value // 1000 >= int(torch.version.cuda.split(".")[0]):  # no driver, but a stub; or it fits
        return
    text = (
        f"torch {torch.__version__}, built for CUDA {torch.version.cuda}, finds no GPU; the driver here is for CUDA "
        f"{number.value // 1000}.{number.value % 1000 // 10}; see docs/install.md for builds that fit a driver"
    )
    if count_gpus():
        raise ConfigError(text)
    print(f"launch.sh: warning: {text}", file=sys.stderr)


def main() -> int:
    try:
        print(*find(), sep="\n")
    except ConfigError as error:
        print(f"launch.sh: SYSTEM_TORCH=1: {error}", file=sys.stderr)
        return REFUSED_EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
