"""What tuning each family's text encoders needs, from configurations alone: `python scripts/predict_memory.py`.

No weights are there: models and scorers are shapes on the device `meta`, and the plan is the one that `dry_run=true`
prints. Writes docs/results/memory.json and prints its table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from textcraftor.cli import compose, register
from textcraftor.errors import UsageError
from textcraftor.training.phases import GB
from textcraftor.training.prediction import predict

FILE = Path(__file__).parent.parent / "docs" / "results" / "memory.json"
COMMON = ("dry_run=true", "dtype=bfloat16", "scorer_dtype=bfloat16", "rewards=preference", "rewards.imagereward=null")
# Each with the budgets in GB that people ask about.
CASES = (
    ("sd15", "text_encoder", (24,)),
    ("sd15", "both", (24, 48)),
    ("sdxl", "text_encoders_lora", (24,)),
    ("sdxl", "text_encoders", (24, 48)),
    ("sd35_medium", "text_encoders_lora", (24, 48)),
    ("sd35_medium", "text_encoder_3_lora", (24, 48)),
    ("flux1_dev", "text_encoder_2_lora", (48, 80)),
    ("flux2_klein", "text_encoder_lora", (24, 48)),
)


def row(model: str, tune: str, budget: int) -> dict:
    """One prediction; where not even one prompt fits, what the refusal says."""
    overrides = [f"model={model}", f"tune={tune}", f"memory.budget={budget}", "training.batch_size=1", *COMMON]
    config = compose("train", overrides)
    found = {"model": model, "tune": tune, "budget_gb": budget, "pixels": config.sampling.height}
    try:
        plan, _ = predict(config)
    except UsageError as error:
        return found | {"fits": False, "plan": str(error)}
    return found | {"fits": True, "predicted_gb": round(plan.predicted / GB, 1), "plan": str(plan)}


def table(rows: list[dict]) -> str:
    """As Markdown."""
    lines = ["| model | tuned | pixels | budget | predicted peak | how |", "| --- | --- | --- | --- | --- | --- |"]
    for one in rows:
        how = one["plan"].removeprefix("memory: ").partition("; predicted")[0] if one["fits"] else "does not fit"
        peak = f"{one['predicted_gb']} GB" if one["fits"] else one["plan"].partition("needs ")[2].partition(":")[0]
        cells = (one["model"], one["tune"], one["pixels"], f"{one['budget_gb']} GB", peak, how)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    register()
    rows = []
    for model, tune, budgets in CASES:
        for budget in budgets:
            rows.append(row(model, tune, budget))
            print(rows[-1], flush=True)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps({"command": "python scripts/predict_memory.py", "rows": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
