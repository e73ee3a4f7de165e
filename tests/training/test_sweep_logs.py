"""A sweep that is handed to a cluster says where its jobs print, before they are launched."""

from __future__ import annotations

from omegaconf import OmegaConf

from textcraftor.training.sweep import BestJob


def test_a_sweep_on_submitit_says_where_its_logs_are(capsys):
    """By submitit's own pattern for file names; a sweep on this machine prints here and says nothing."""
    launcher = {"submitit_folder": "${hydra.sweep.dir}/.submitit/%j"}
    BestJob().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "runs/s"}, "launcher": launcher}}))
    line = capsys.readouterr().out
    assert line == (
        "textcraftor: each job's output: runs/s/.submitit/<job>/<job>_0_log.out, errors in <job>_0_log.err\n"
    )
    BestJob().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": "runs/s"}, "launcher": {}}}))
    assert capsys.readouterr().out == ""
