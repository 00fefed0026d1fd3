"""Where a result comes from (floor 0): the code behind a rule, and the seed behind a draw.

The workflow engine does not see edits to imported files, so a rule is handed a hash of its
code as a parameter. The hash covers a script and every
`veil` module it imports, directly or not, as syntax trees without comments and docstrings:
new code reruns what used the old one, a reworded comment does not cost a night of training.
Modules imported by name at run time (the generators) are given by the caller.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent


@lru_cache
def code_hash(script: str, *modules: str, files: tuple[str, ...] = ()) -> str:
    """Hash of a script's code and of everything in `veil` that it and `modules` import.

    `files` are others it reads (templates), relative to the scripts' folder.
    """
    found = {name: hashlib.sha256((SCRIPTS / name).read_bytes()).hexdigest() for name in files}
    waiting = [SCRIPTS / script, *(_file(module) for module in modules)]
    while waiting:
        path = waiting.pop()
        if path is None or (name := str(path.relative_to(SCRIPTS))) in found:
            continue
        found[name], imported = _read(path)
        waiting += [_file(module) for module in imported]
    text = "\n".join(f"{name} {found[name]}" for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def _file(module: str) -> Path | None:
    base = SCRIPTS.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


@lru_cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """(hash of a file's code, names of the modules it may import)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from a import b`: b may be a module or a name; what is no file is dropped.
            imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    code = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    return code, tuple(sorted(name for name in imported if name.split(".")[0] in ("veil", "job")))


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def derive_seed(seed: int, *path: str) -> int:
    """A 63-bit seed for one result, from the study's seed and the result's path."""
    text = "/".join([str(seed), *path])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
