"""What a tuning run works with, loaded from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from omegaconf import DictConfig

from textcraftor.config.making import made
from textcraftor.errors import UsageError
from textcraftor.evaluation.embeddings import embedding_drift
from textcraftor.evaluation.evaluate import Evaluation, Judge, evaluate
from textcraftor.inference.generate import Sampling
from textcraftor.inference.mix import Mix
from textcraftor.inference.opening import BEGIN, open_model
from textcraftor.models.compiling import compile_denoiser
from textcraftor.models.loading import dtype_of
from textcraftor.models.model import Model
from textcraftor.models.placing import Part
from textcraftor.models.seeds import global_seed
from textcraftor.models.tuning import Learner
from textcraftor.rewards.total import RewardSum, load_rewards
from textcraftor.sampling.conditioning import ConditioningSchedule
from textcraftor.training.loop import Objective, Pace
from textcraftor.training.memory import Plan, bytes_of, host_bytes, plan_memory
from textcraftor.training.processes import processes_of_this_run, processes_together, say
from textcraftor.training.rates import share_of_rate
from textcraftor.training.state import TrainingState

# Of a parameter: its gradient and Adam's two moments; its moving average; its gradient on the way between processes.
ADAM_BYTES, EMA_BYTES, EXCHANGE_BYTES = 12, 4, 4


def updating_bytes(learners: Sequence[Learner], ema_decay: float) -> float:
    """What gradients and the optimiser need beside the weights that learn."""
    each = ADAM_BYTES + (EMA_BYTES if ema_decay else 0)
    each += EXCHANGE_BYTES if processes_of_this_run().num_processes > 1 else 0
    return float(each * sum(parameter.numel() for learner in learners for parameter in learner.parameters))


def scorers_part(rewards: RewardSum) -> Part:
    """All scorers as a part that memory is planned for: they may come to the device one after another."""
    sizes = [bytes_of([scorer]) for scorer in rewards.scorers.values()]
    return Part("scorers", sum(sizes), ("while_it_works",), max(sizes))


@dataclass
class Job:
    """What a configuration means, loaded.

    Args:
        rewards: the scorers that look at the pictures, whether they are learned from or not.
        schedule: which encoder conditions which noise level, here and wherever the encoder is used later.
        start: the conditioning before training: the original encoder, or that of the run that `tuned` names.
        evaluated, watched: held-out prompts, for the end and for on the way.
        objective: what is descended on.
    """

    config: DictConfig
    model: Model
    rewards: RewardSum
    sampling: Sampling
    schedule: ConditioningSchedule
    learners: list[Learner]
    start: ConditioningSchedule
    judge: Judge | None
    evaluated: list[str]
    watched: list[str]
    precision: str
    objective: Objective = field(init=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.config.evaluation.seeds)

    def look(self, schedule: ConditioningSchedule, prompts: list[str], before: Evaluation | None = None) -> Evaluation:
        """Make and measure the pictures of prompts that are held out.

        Args:
            before: those of the model before training: adds `drift` and, where text encoders learn, `embedding_drift`.
        """
        seeds = self.seeds if prompts is self.evaluated else tuple(self.config.watch.seeds)
        model, sampling, size = self.model, self.sampling, self.config.evaluation.batch_size
        seen = evaluate(model, schedule, sampling, self.rewards, self.judge, prompts, seeds, size, before)
        if before is not None and schedule != self.start:
            moved = embedding_drift(model, sampling, prompts, self.start, schedule, size)
            seen.measures["embedding_drift"] = np.repeat(moved[:, None], len(seeds), axis=1)
        return seen

    def state(self) -> TrainingState:
        """What training starts from, its memory planned."""
        config, training = self.config, self.config.training
        share = -(-training.batch_size // processes_of_this_run().num_processes)
        updating = updating_bytes(self.learners, training.ema_decay)
        device, costs, memory = self.model.device, self.objective.costs(), config.memory
        parts, chosen = [*self.model.placeable(), scorers_part(self.rewards)], memory.places
        plan = plan_memory(memory.budget, device, costs, share, updating, None, parts, host_bytes(device), chosen)
        self.place(plan)
        half = self.model.compute_dtype == torch.float16
        return TrainingState(
            self.learners,
            self.rewards,
            plan,
            made(config.optim, lr=self.learners[0].lr),
            share_of_rate(training.lr_schedule, training.warmup, training.steps, training.lr_cycles),
            training.ema_decay,
            half,
            config.memory.budget,
        )

    def place(self, plan: Plan) -> None:
        """Put the frozen parts where the plan wants them."""
        learning = [parameter for learner in self.learners for parameter in learner.parameters]
        self.model.place(plan.places, learning, processes_together())
        if plan.places["scorers"] == "while_it_works":
            self.rewards.work_one_by_one(away=self.model.device.type != "cpu")

    @property
    def pace(self) -> Pace:
        chosen = ("steps", "batch_size", "max_grad_norm", "checkpoint_every", "skip_broken")
        return Pace(**{name: self.config.training[name] for name in chosen}, watch_every=self.config.watch.every)


def prepare(
    config: DictConfig,
    objective_of: Callable[[Job], Objective],
    prompts: Sequence[str],
    evaluated: list[str],
    watched: list[str],
) -> Job:
    """Load everything; what learns is float32, the rest is stored as `dtype` says.

    Args:
        prompts: to train on; the model and the scorers must know their words.

    Raises:
        UsageError: rewards shall be normalised by a single picture.
    """
    if config.normalize_rewards and len(evaluated) * len(config.evaluation.seeds) < 2:
        raise UsageError(
            "normalize_rewards=true divides by how far scores spread over the evaluated pictures, and here is one: "
            "raise evaluation.prompts or name more evaluation.seeds, or leave normalize_rewards out"
        )
    wanted = config.evaluation.prompts, config.watch.prompts
    if (len(evaluated), len(watched)) != wanted:
        say(
            f"too few prompts are held out: {len(evaluated)} of evaluation.prompts={wanted[0]} and {len(watched)} of "
            f"watch.prompts={wanted[1]} are there"
        )
    torch.manual_seed(global_seed(config.seed))
    begun = Mix(dict(zip([BEGIN], config.tuned.values(), strict=False)))
    opened = open_model(config, [begun], [*prompts, *evaluated, *watched])
    model, sampling, learners, (start,) = opened.model, opened.sampling, opened.learners, opened.schedules
    schedule = start
    if any(learner.part != "denoiser" for learner in learners):
        conditioning = config.conditioning
        schedule = ConditioningSchedule.tuned_on(conditioning.tuned_on, conditioning.n, sampling.timesteps(model))
    rewards = load_rewards(config.rewards, config.normalize_rewards).to(model.device)
    scorer_dtype = dtype_of(config, "scorer_dtype")[0]
    rewards.scorers.to(scorer_dtype)
    rewards.check([*prompts, *evaluated, *watched])
    precision = f"precision: what learns in float32, {opened.precision}, scorers in {scorer_dtype}"
    if config.compile:
        precision += f"; {compile_denoiser(model, sampling.height, sampling.width)}"
    judge = made(config.model.judge)
    job = Job(config, model, rewards, sampling, schedule, learners, start, judge, evaluated, watched, precision)
    job.objective = objective_of(job)
    return job
