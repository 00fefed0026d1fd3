"""Run tests on mutated copies of the library, each in a fork of a process that imports once.

    python tests/privacy/mutant_server.py

Reads one JSON object a line (`library`, `tests`: a list of pytest's arguments, `log`) and answers
with the exit status: pytest's, or 99 if a module of the library came from anywhere else.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

# What takes long to import, and nothing of the library.
import diffusers  # noqa: F401
import dp_accounting  # noqa: F401
import opacus.accountants  # noqa: F401
import pandas  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch
from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401

STRANGE = 99
"""Exit status where something else than the mutant was tested."""


def run(library: str, tests: list[str], log: str) -> int:
    """In the child: pytest on one mutant."""
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.dont_write_bytecode = True
    torch.set_num_threads(1)
    status = int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=",
                              "-o", f"pythonpath={library} tests/privacy"]))  # fmt: skip
    places = {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.split(".")[0] == "veil" and getattr(module, "__file__", None)
    }
    if not places or any(not Path(p).is_relative_to(library) for p in places.values()):
        print(f"tested another library: {places}")
        return STRANGE
    return status


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            try:
                os._exit(run(**asked))
            except BaseException:
                traceback.print_exc()
                os._exit(STRANGE)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
