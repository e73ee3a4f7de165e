"""The GPU's day, tried out on the CPU with small models: every part gives its result, and what has one is left out."""

from __future__ import annotations

import json
import sys

import gpu_day


def test_every_part_gives_a_result_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    """No part errs, predicted peaks lie beside measured ones, one device has its own gradient, and nothing is twice."""
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--tiny", "--device", "cpu", "--folder", str(tmp_path)])
    gpu_day.main()
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert results.keys() == gpu_day.PARTS.keys()
    for name, result in results.items():
        assert "error" not in json.dumps(result), (name, result)
    assert results["parity"]["cosine"] > 1 - 1e-6
    assert results["step"]["planned"]["measured_gb"] > 0
    assert results["batch"]["24 GB"]["batch"] >= 1
    assert len(results["profile"]["operations"]) == 20
    capsys.readouterr()
    gpu_day.main()
    assert capsys.readouterr().out == ""
