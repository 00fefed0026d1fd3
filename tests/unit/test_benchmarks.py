"""The GPU benchmark runs whole, at sizes for a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

SECTIONS = {
    "steps", "noise", "modes", "together", "resume", "resume, deterministic", "denoiser",
}  # fmt: skip


@pytest.mark.slow
def test_the_gpu_benchmark_runs_whole_at_sizes_for_a_cpu(tmp_path):
    place = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = [ROOT / "benchmarks/gpu.sh", "--tiny"]
    done = subprocess.run(command, env=place, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert set(found) == SECTIONS
    for name, section in found.items():
        assert section["rows"], name
        assert not section["problem"], (name, section["problem"])
        for row in section["rows"]:
            of_a_peer = name == "steps" and "Veil" not in row["method"]
            by_torch = "compiled" in str(row.get("mode", "")) + str(row.get("what", ""))
            assert of_a_peer or by_torch or "failed" not in row, (name, row)
    assert {row["safe"] for row in found["modes"]["rows"] if "safe" in row} == {"yes"}
    for row in found["resume"]["rows"]:
        assert row["a resumed one is equal"] == "yes", row
    assert (tmp_path / "gpu.md").read_text().strip() in done.stdout
