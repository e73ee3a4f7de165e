"""A mix in stock pipelines: every argument of theirs means what it means without a mix, or is refused by name."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    SemanticStableDiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.callbacks import SDCFGCutoffCallback

from tests.conftest import PROMPTS, load
from tests.inference.test_mix import LORA, generators, make_run, pipeline
from textcraftor.errors import UsageError
from textcraftor.inference.mix import Mix
from textcraftor.inference.stock import _exchanged, _following
from textcraftor.models.base import Branch, Conditioning

GIVEN = {"guidance_scale": 3.0, "height": 64, "width": 64, "output_type": "pt"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stock")
    return {
        "a": make_run(folder / "a", 1, {"text_encoder": None}),
        "b": make_run(folder / "b", 2, {"text_encoder": LORA}),
    }


def tuned(pipe, run: Path):
    """A pipeline with a run's text encoder in its own's place."""
    model = load()
    Mix({"x": run}).schedule(model)
    pipe.text_encoder = model.encoders("x")["text_encoder"]
    return pipe


def made(pipe, **arguments) -> torch.Tensor:
    return pipe(**GIVEN, **arguments, generator=generators()).images


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "asked",
    [{"negative_prompt": None}, {"negative_prompt": "a blue star"}, {"num_inference_steps": None}],
)
def test_an_argument_means_what_it_means_to_a_pipeline_with_the_tuned_encoder(runs, asked):
    asked = {"num_inference_steps": 3} | asked
    pipe = pipeline()
    ours = made(pipe, **Mix({"a": runs["a"]}).inputs(pipe, PROMPTS, **asked))
    stock = {name: value for name, value in asked.items() if value is not None}
    if "negative_prompt" in stock:
        stock["negative_prompt"] = [stock["negative_prompt"]] * len(PROMPTS)
    assert_same(ours, made(tuned(pipeline(), runs["a"]), prompt=PROMPTS, **stock))


@torch.no_grad()
def test_clip_skip_is_read_as_the_pipeline_means_it(runs):
    """The last layer but one, normalised as the last, of the prompt alone (`StableDiffusionPipeline.encode_prompt`)."""
    pipe, other = pipeline(), tuned(pipeline(), runs["a"])
    skipped, usual = (
        Mix({"a": runs["a"]}).inputs(pipe, PROMPTS, num_inference_steps=3, **asked) for asked in ({"clip_skip": 1}, {})
    )
    ours, plain = skipped["prompt_embeds"], usual["prompt_embeds"]
    assert_same(skipped["negative_prompt_embeds"], usual["negative_prompt_embeds"])
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoder = other.text_encoder
    hidden = encoder(tokens, output_hidden_states=True).hidden_states[-2]
    assert_same(ours, getattr(encoder, "text_model", encoder).final_layer_norm(hidden))
    assert (ours - plain).abs().max() > 1e-2, "clip_skip changes nothing: this proves nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_embeds": torch.zeros(1, 2, 3)}, r"prompt_embeds is what the mix makes of the prompt: leave it out"),
        ({"negative_prompt_embeds": torch.zeros(1, 2, 3)}, r"negative_prompt_embeds is what the mix makes"),
        ({"steps": 3}, r"steps=3: StableDiffusionPipeline takes no such argument"),
        ({"kwargs": 3}, r"kwargs=3: StableDiffusionPipeline takes no such argument"),
        ({"prompt": None}, r"prompt=None must be a text, or a list of texts"),
        ({"prompt": []}, r"prompt=\[\] must be a text, or a list of texts"),
        ({"prompt": ["a star", None]}, r"prompt=\['a star', None\] must be a text, or a list of texts"),
        ({"prompt": {"a star": 1}}, r"prompt=\{'a star': 1\} must be a text"),
        ({"num_inference_steps": 0}, r"num_inference_steps=0 must be a whole number from 1 on"),
        ({"num_inference_steps": 3.5}, r"num_inference_steps=3.5 must be a whole number from 1 on"),
        ({"clip_skip": -1}, r"clip_skip=-1 must be a whole number from 0 on"),
        ({"clip_skip": 99}, r"clip_skip=99 must be less than \d+, the layers of the shortest text encoder"),
        ({"guidance_scale": [3.0, 4.0, 5.0]}, r"guidance_scale=\[3.0, 4.0, 5.0\] must be one number, for all prompts"),
        ({"timesteps": [900, 100]}, r"timesteps: DDIMScheduler does not take them: give num_inference_steps instead"),
        ({"negative_prompt": ["a red circle"]}, r"1 negative prompts for 3 prompts: give one each"),
    ],
)
def test_an_argument_that_a_mix_cannot_follow_is_refused(runs, arguments, message):
    with pytest.raises(UsageError, match=message):
        Mix({"a": runs["a"]}).inputs(pipeline(), **{"prompt": PROMPTS} | arguments)


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [(StableDiffusionInstructPix2PixPipeline, r"encode_prompt"), (SemanticStableDiffusionPipeline, "prompt_embeds")],
)
def test_a_pipeline_that_takes_no_embeddings_as_others_do_is_refused(runs, kind, lacks):
    with pytest.raises(UsageError, match=f"{kind.__name__} has no .*{lacks}.*by which mixes work: take another"):
        Mix({"a": runs["a"]}).inputs(pipeline(kind), PROMPTS)


def test_adapters_on_the_pipelines_own_text_encoder_are_refused_as_such(runs):
    """As what they are, and not any more once they are taken off; those on its UNet stay in use."""
    pipe, mix = pipeline(), Mix({"a": runs["a"]})
    pipe.load_lora_weights(runs["b"] / "text_encoder_lora")
    with pytest.raises(UsageError, match=r"the pipeline's text_encoder has adapters loaded.*pipe.unload_lora_weights"):
        mix.inputs(pipe, PROMPTS)
    pipe.unload_lora_weights()
    mix.inputs(pipe, PROMPTS)


@pytest.mark.parametrize("run", ["a", "b"])
def test_words_learned_by_textual_inversion_are_read(runs, run):
    """As in a pipeline whose encoder is the tuned one, also by a mix that this pipeline has used before."""
    pipe, other, mix = pipeline(), tuned(pipeline(), runs[run]), Mix({"x": runs[run]})
    prompts = ["a red <thing>", *PROMPTS[1:]]
    before = mix.inputs(pipe, PROMPTS, num_inference_steps=3)["prompt_embeds"]
    width = pipe.text_encoder.config.hidden_size
    vector = 3 * torch.randn(width, generator=torch.Generator().manual_seed(1))
    for one in (pipe, other):
        one.load_textual_inversion({"<thing>": vector})
    given = mix.inputs(pipe, prompts, num_inference_steps=3)
    assert_same(made(pipe, **given), made(other, prompt=prompts, num_inference_steps=3))
    assert (given["prompt_embeds"][0] - before[0]).abs().max() > 0.1
    assert_same(given["prompt_embeds"][1:], before[1:])


def test_a_run_with_fewer_words_is_still_of_another_base_model(runs):
    """Where no word was added to the tokenizer."""
    pipe = pipeline()
    pipe.text_encoder.resize_token_embeddings(pipe.text_encoder.config.vocab_size + 1)
    with pytest.raises(UsageError, match=r"token_embedding.weight has the shape .* tuned for another base model"):
        Mix({"a": runs["a"]}).inputs(pipe, PROMPTS)


def followed(pipe) -> list[tuple[float, torch.Tensor]]:
    """What the UNet is called with from now on: the timestep, and the last branch's first hidden states."""
    calls, forward = [], pipe.unet.forward

    def seen(sample, t, encoder_hidden_states, **options):
        calls.append((float(t), encoder_hidden_states))
        return forward(sample, t, encoder_hidden_states, **options)

    pipe.unet.forward = seen
    return calls


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of numpy, in diffusers' KDPM2
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_the_last_steps_of_a_sampler_that_calls_the_denoiser_twice(runs, kind):
    """Two of five steps are their four or three calls, and no call of the steps before at a higher noise level."""
    pipe, mix = pipeline(scheduler=kind), Mix({"a": runs["a"]}, last=(2, 5))
    late = Mix({"a": runs["a"]}).inputs(pipe, PROMPTS, num_inference_steps=5)["prompt_embeds"]
    given, calls = mix.inputs(pipe, PROMPTS, num_inference_steps=5), followed(pipe)
    made(pipe, **given)
    tuned_calls = [torch.equal(states[len(PROMPTS) :], late) for _, states in calls]
    begins = pipe.scheduler.timesteps[::2].tolist()[-2]
    assert len(calls) == 9
    assert tuned_calls == [t <= begins for t, _ in calls]
    assert tuned_calls[:5] + tuned_calls[6:] == [False] * 5 + [True] * 3


def test_perturbed_attention_guidance_has_three_branches(runs):
    """Each call's are the negative prompt's and twice the prompt's, of the encoder for its noise level."""
    pipe, mix = pipeline(StableDiffusionPAGPipeline), Mix({"a": runs["a"]}, last=(2, 4))
    late = Mix({"a": runs["a"]}).inputs(pipe, PROMPTS, "a blue star", num_inference_steps=4)
    given, calls = mix.inputs(pipe, PROMPTS, "a blue star", num_inference_steps=4), followed(pipe)
    made(pipe, **given, pag_scale=2.0)
    rows = [torch.cat([one["negative_prompt_embeds"], *[one["prompt_embeds"]] * 2]) for one in (given, late)]
    assert len(calls) == 4
    for index, (_, states) in enumerate(calls):
        assert_same(states, rows[index >= 2])
    assert (rows[0] - rows[1]).abs().max() > 1e-2


def test_branches_in_any_order_change_row_by_row():
    """Three branches as of an instruction's pipeline, two pictures a prompt; what is no branch's is refused."""
    generator = torch.Generator().manual_seed(0)
    now, then = (
        Conditioning(*(Branch({"x": torch.randn(2, 3, 4, generator=generator)}) for _ in range(2))) for _ in range(2)
    )
    held, wanted = (
        torch.cat([one.prompt.mixed["x"], *[one.negative.mixed["x"]] * 2]).repeat_interleave(2, 0)
        for one in (now, then)
    )
    assert torch.equal(_exchanged(None, "prompt_embeds", held, "x", now, then), wanted)
    for changed in (2 * held, held[:, :2]):
        with pytest.raises(UsageError, match=r"has changed prompt_embeds, and this mix switches encoders"):
            _exchanged(None, "prompt_embeds", changed, "x", now, then)


@pytest.mark.parametrize(("begin", "taken"), [(0, 5), (2, 3), (0, 3), (1, 3)])
def test_the_next_timestep_of_a_pipeline_that_takes_some_of_them(begin, taken):
    steps = torch.tensor([900, 700, 500, 300, 100])
    pipe = SimpleNamespace(scheduler=SimpleNamespace(timesteps=steps), num_timesteps=taken)
    next_ones = [_following(pipe, step, steps[begin + step]) for step in range(taken)]
    assert next_ones[:-1] == steps[begin + 1 : begin + taken].tolist()
    assert next_ones[-1] is None


def test_what_the_first_step_depends_on_must_be_given_to_inputs(runs):
    """A strength that makes the pipeline begin with another encoder than was meant is refused at its first step."""
    pipe, mix = pipeline(StableDiffusionImg2ImgPipeline), Mix({"a": runs["a"]}, timestep=500)
    picture = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    given = mix.inputs(pipe, PROMPTS, num_inference_steps=10, strength=1.0)
    with pytest.raises(UsageError, match=r"began at timestep \d+, and the mix was made for .*: give .*strength"):
        pipe(**given | {"strength": 0.3}, image=picture)


def test_a_callback_of_diffusers_gets_the_tensors_that_it_asks_for(runs):
    """One that ends guidance half-way, in a mix that switches later: no error, and other pictures."""
    pipe, mix = pipeline(), Mix({"a": runs["a"]}, last=(1, 4))
    plain, cut = (
        pipe(
            **GIVEN,
            **mix.inputs(pipe, PROMPTS[0], num_inference_steps=4, callback_on_step_end=one),
            generator=generators()[0],
        ).images
        for one in (None, SDCFGCutoffCallback(cutoff_step_ratio=0.5))
    )
    assert (plain - cut).abs().max() > 1e-3


def test_the_pipeline_stays_as_it_was(runs):
    """Modes, what learns, the sampler and its steps; also where adapters share its weights."""
    pipe = pipeline()
    pipe.text_encoder.train().requires_grad_(True)
    next(pipe.text_encoder.parameters()).requires_grad_(False)
    pipe.scheduler.set_timesteps(7)

    def state():
        parts = {"encoder": pipe.text_encoder, "unet": pipe.unet, "vae": pipe.vae}
        modes = {name: [one.training for one in part.modules()] for name, part in parts.items()}
        learns = {name: [one.requires_grad for one in part.parameters()] for name, part in parts.items()}
        scheduler = (id(pipe.scheduler), dict(pipe.scheduler.config), pipe.scheduler.timesteps.tolist())
        return modes, learns, scheduler, set(vars(pipe)), id(pipe.text_encoder), dict(pipe.config)

    before = state()
    Mix({"a": runs["a"], "b": runs["b"]}, {"a": 0.5, "b": 0.5}, last=(2, 4)).inputs(
        pipe, PROMPTS, num_inference_steps=4, clip_skip=1
    )
    assert state() == before


def test_a_prompt_longer_than_the_encoder_reads_is_warned_of(runs):
    long = " ".join(["a red circle and"] * 40)
    pipe, mix = pipeline(), Mix({"a": runs["a"]})
    with pytest.warns(UserWarning, match=r"its end, past token \d+, is cut off"):
        mix.inputs(pipe, long)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mix.inputs(pipe, PROMPTS)
