"""Words that every bundle holds, or that say nothing of anybody (floor 5).

A cohort's table says male, left and train, and a card says test and image. A scanner that refused
those would be switched off.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[1]
WRITERS = (
    "config.py", "privacy/*.py", "release/bundle.py", "report/tables.py",
)  # fmt: skip
"""The code whose texts, keys and numbers stand in bundles."""
_COMMON = """
male female other diverse unknown none null true false not available missing yes left right
both ambidextrous train training validation test unused healthy control controls patient
patients subject subjects participant participants case cases cohort group baseline followup
session sessions scan scans scanner image images label labels mask masks brain head vessel
vessels slice slices volume volumes series data dataset raw export exports archive archives
source sourcedata derivatives anat angio angiography angiogram bold flair dicom nifti bids files
file folder home users user admin root runner share project projects study studies node server
login cluster compute local localhost desktop laptop original primary derived secondary norm
time phase magnitude echo flight magnetic resonance tomography contrast weighted axial sagittal
coronal oblique fast slow spin gradient tesla siemens philips general electric healthcare
medical systems imaging united canon toshiba hitachi compatible realigned version name date
birth with from this that were been have after before since about which their there other
first second third last next small large high normal year years month months hospital
university clinic institute department center centre radiology neurology stroke disease artery
arteries cerebral carotid stenosis aneurysm
"""
COMMON = frozenset(_COMMON.split())


@lru_cache
def own_texts() -> tuple[str, ...]:
    """The texts, keys and numbers that stand in bundles whatever the cohort."""
    found = (LIBRARY / "release/card.md.j2").read_text(encoding="utf-8").splitlines()
    for pattern in WRITERS:
        for path in sorted(LIBRARY.glob(pattern)):
            found += _constants(ast.parse(path.read_text(encoding="utf-8")))
    return tuple(dict.fromkeys(found))


def _constants(tree: ast.AST) -> Iterator[str]:
    """Strings but docstrings, numbers, and names of fields."""
    notes = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in notes:
            if isinstance(node.value, str | int | float):
                yield str(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
