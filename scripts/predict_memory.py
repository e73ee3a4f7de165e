"""What tuning each family's text encoders needs, from configurations alone: `python scripts/predict_memory.py`.

No weights are there: models and scorers are shapes on the device `meta`, and the plan is the one that `dry_run=true`
prints.
"""

from __future__ import annotations

from results import new_parser, show

from textcraftor.cli import compose, register
from textcraftor.errors import UsageError
from textcraftor.training.phases import GB
from textcraftor.training.prediction import predict

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


def row(model: str, tune: str, budget: int) -> list:
    """One prediction; where not even one prompt fits, what that would need."""
    overrides = [f"model={model}", f"tune={tune}", f"memory.budget={budget}", "training.batch_size=1", *COMMON]
    config = compose("train", overrides)
    asked = [model, tune, config.sampling.height, f"{budget} GB"]
    try:
        plan, _ = predict(config)
    except UsageError as error:
        return [*asked, str(error).partition("needs ")[2].partition(":")[0], "does not fit"]
    how = str(plan).removeprefix("memory: ").partition("; predicted")[0]
    return [*asked, f"{plan.predicted / GB:.1f} GB", how]


def main() -> None:
    parser = new_parser(__doc__)
    arguments = parser.parse_args()
    register()
    rows = [row(model, tune, budget) for model, tune, budgets in CASES for budget in budgets]
    show("memory", "peaks", ["model", "tuned", "pixels", "budget", "predicted peak", "how"], rows, arguments.store)


if __name__ == "__main__":
    main()
