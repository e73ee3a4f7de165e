"""Understanding models: transformers' own and captioners by heart, a server over HTTP; each is asked again in vain."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from tests.captioning.tiny_models import byte_level_tokenizer, save_gpt2, save_llava
from tests.conftest import WEIGHTS
from tests.servers import told
from textcraftor.captioning.advice import Advice, question, text_of
from textcraftor.captioning.endpoint import Endpoint, wait_after
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.captioning.understanding import AskedModel, Written
from textcraftor.cli import config_dir
from textcraftor.config.data import Understander
from textcraftor.config.making import made
from textcraftor.config.typed import opened
from textcraftor.errors import UsageError
from textcraftor.sampling.regions import Region

PICTURES = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
PROMPTS = ["a red circle", 'a blue star, "KKQ", {and} much more of it']
REGIONS = (Region((0.0, 0.0, 1.0, 1.0), 'warm "light"'), Region((0.1, 0.2, 0.5, 0.9), "a {large} circle"))
ADVICE = [Advice(REGIONS), Advice()]
SECRET = "sk-very-secret-7"
NO_API = "does not answer as an OpenAI-compatible server"


def learn(parameters, loss, steps: int, lr: float) -> None:
    """Minimise a loss."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """LLaVA, tiny, with random weights and a tokenizer that gives questions and answers back."""
    folder = tmp_path_factory.mktemp("llava")
    texts = [question(prompt, 10) for prompt in PROMPTS] + [text_of(REGIONS, 10)] * 3
    save_llava(folder, byte_level_tokenizer(folder, texts, size=600))
    return folder


def test_a_model_of_transformers_advises_what_it_learned(folder):
    """By heart, for each picture of a batch under its own prompt; what it answers is read in its own numbers."""
    understander = AskedModel(str(folder), box_scale=10, max_new_tokens=80, device="cpu")
    model, tokenizer = understander.model.model, understander.model.processor.tokenizer
    model.requires_grad_(True)
    rows = []
    for picture, prompt, regions in zip(PICTURES, PROMPTS, (REGIONS, ()), strict=True):
        inputs = understander.model._inputs([picture], [question(prompt, 10)])
        answer = torch.tensor([[*tokenizer(text_of(regions, 10)).input_ids, tokenizer.eos_token_id]])
        ids = torch.cat([inputs["input_ids"], answer], 1)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer], 1)
        rows.append({"input_ids": ids, "labels": labels, "pixel_values": inputs["pixel_values"]})
    learn(model.parameters(), lambda: sum(model(**row).loss for row in rows), steps=40, lr=2e-2)
    assert understander(PICTURES, PROMPTS) == ADVICE
    assert understander(PICTURES[::-1], PROMPTS[::-1]) == ADVICE[::-1]


def test_a_faulty_answer_is_drawn_again_and_then_counts_as_a_fault(folder, monkeypatch):
    """A draw depends on the picture, the question and the try, on nothing else; no other draw is disturbed."""
    understander = AskedModel(str(folder), box_scale=10, max_new_tokens=6, device="cpu")
    drawn, answers = [], understander.model.answers

    def watched(pictures, asked, seed=None):
        texts = answers(pictures, asked, seed)
        drawn.append((len(pictures), seed is not None, *texts))
        return texts

    monkeypatch.setattr(understander.model, "answers", watched)
    before = torch.get_rng_state()
    advice = understander(PICTURES, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(one.fault and not one.regions for one in advice)
    assert [one[:2] for one in drawn] == [(2, False), *[(1, True)] * 4]
    whole = drawn.copy()
    understander(PICTURES[1:], PROMPTS[1:])
    assert drawn[len(whole) + 1 :] == [whole[2], whole[4]]
    assert len({one[2:] for one in whole[1:]}) > 2, "draws that are all the same prove nothing"


def test_a_captioner_that_writes_advice_is_asked_nothing(tmp_path):
    """A prefix captioner, by heart, saved and loaded by its configuration; a captioner that describes is a fault."""
    texts = [text_of(REGIONS, 10), text_of((), 10)]
    (tmp_path / "gpt2").mkdir()
    save_gpt2(tmp_path / "gpt2", byte_level_tokenizer(tmp_path / "gpt2", texts * 3, size=320))
    captioner = PrefixCaptioner(str(WEIGHTS / "aesthetic_clip"), str(tmp_path / "gpt2"), 2, max_new_tokens=90)
    embeds = captioner.embed(PICTURES)
    learned = [*captioner.language_model.parameters(), *captioner.mapper.parameters()]
    learn(learned, lambda: captioner.loss(embeds, texts), steps=60, lr=3e-3)
    captioner.save(tmp_path / "advice")
    settings = OmegaConf.load(config_dir() / "understander" / "written.yaml")
    understander = made(OmegaConf.merge(settings, {"path": str(tmp_path / "advice"), "device": "cpu"}))
    assert understander(PICTURES, PROMPTS) == ADVICE
    assert understander.name == str(tmp_path / "advice")
    described = Written(lambda pictures: ["a red circle" for _ in pictures])
    assert "no JSON list in the answer: a red circle" in described(PICTURES, PROMPTS)[1].fault
    with pytest.raises(UsageError, match=r"understander.path is needed: give the folder that train-captioner wrote"):
        Written.load(None)


@pytest.mark.parametrize("name", ["endpoint", "qwen_vl", "written"])
def test_every_understanders_configuration_is_what_its_class_takes(name, tmp_path):
    """Its keys are typed and taken; what it cannot do without is missed in one line."""
    node = OmegaConf.create(
        {"understander": OmegaConf.load(config_dir() / "understander" / f"{name}.yaml")}
    ).understander
    opened("enhance", node, Understander, "understander")
    if name != "endpoint":
        node.path = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"nothing (does not exist|holds no)|understander\.model is needed"):
        made(node)
    node.url = ["a"]
    with pytest.raises(UsageError, match=r"understander\.url=\[a\] must be a path"):
        opened("enhance", node, Understander, "understander")


def test_a_model_whose_processor_needs_another_package_says_so(folder, tmp_path):
    """Qwen-VL's reads videos too, by torchvision."""
    if importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is installed")
    byte_level_tokenizer(tmp_path, ["a red circle"], size=300)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    for kind in ("", "video_"):
        names = {
            "processor_class": "Qwen3VLProcessor",
            f"{kind or 'image_'}processor_type": f"Qwen{'3VLVideo' if kind else '2VLImage'}Processor",
        }
        (tmp_path / f"{kind}preprocessor_config.json").write_text(json.dumps(names))
    with pytest.raises(
        UsageError, match=r"understander\.path: .* needs a package .*Torchvision.*: install it with pip$"
    ):
        AskedModel(str(tmp_path), device="cpu")


GOOD = told(text_of(REGIONS))


def test_a_server_is_asked_as_its_api_says(server, monkeypatch):
    """The model, the picture as it is, the question, the key; each picture gets the answer on it."""
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    server.reply = lambda requests: told("[]") if "blue" in str(requests[-1][2]) else GOOD
    understander = Endpoint(server.url, "advisor", "MY_KEY", concurrent=1, request={"seed": None, "top_p": 0.5})
    assert understander(PICTURES, PROMPTS) == ADVICE
    path, headers, body = server.requests[0]
    (message,) = body.pop("messages")
    picture, text = message["content"]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body == {"model": "advisor", "max_tokens": 1000, "temperature": 0, "top_p": 0.5}
    assert text == {"type": "text", "text": question(PROMPTS[0])}
    kind, _, packed = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(packed))).tobytes() == PICTURES[0].tobytes()


def test_answers_of_many_requests_at_a_time_keep_their_places(server):
    """And no more are under way than are allowed."""
    shown = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(12)]
    busy, lock, most = 0, threading.Lock(), 0

    def reply(requests):
        nonlocal busy, most
        with lock:
            busy, most = busy + 1, max(most, busy + 1)
        ready.wait(5)
        with lock:
            busy -= 1
        return GOOD

    ready = threading.Barrier(3)
    server.reply = reply
    advice = Endpoint(server.url, "advisor", concurrent=3)(shown, [f"number {number}" for number in range(12)])
    assert advice == [ADVICE[0]] * 12
    assert most == 3


def test_a_faulty_answer_is_asked_again_from_another_seed(server):
    server.replies(told("I cannot say."), told(None), GOOD)
    assert Endpoint(server.url, "advisor")(PICTURES[:1], PROMPTS[:1]) == ADVICE[:1]
    assert [body["temperature"] for _, _, body in server.requests] == [0, 1, 1]
    assert len({body["seed"] for _, _, body in server.requests}) == 3
    server.replies(told("I cannot say."))
    assert "I cannot say" in Endpoint(server.url, "advisor")(PICTURES[:1], PROMPTS[:1])[0].fault


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_later(server, status):
    server.replies((status, {}, b""), (status, {"Retry-After": "0"}, b"busy"), GOOD)
    assert Endpoint(server.url, "advisor")(PICTURES[:1], PROMPTS[:1]) == ADVICE[:1]
    assert len(server.requests) == 3
    server.replies((status, {}, b'{"error": {"message": "out of\\nbreath"}}'))
    with pytest.raises(UsageError, match=rf"asked 5 times \({status} .* out of breath\): start the server, or"):
        Endpoint(server.url, "advisor")(PICTURES[:1], PROMPTS[:1])


def test_waits_grow_unless_the_server_names_one():
    assert [wait_after(attempt, "") for attempt in (0, 1, 2, 9)] == [1, 2, 4, 60]
    assert [wait_after(1, later) for later in ("7", "9" * 400, "soon", "-1")] == [7, 60, 2, 2]


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ((200, {}, b"<html>\n<b>Hi</b></html>"), f"{NO_API} (<html> <b>Hi</b></html>)"),
        ((200, {}, b'{"answer": 5}'), f'{NO_API} ({{"answer": 5}})'),
        ((200, {}, b'{"choices": []}'), NO_API),
        ((200, {}, b'{"choices": [{"message": {"content": 5}}]}'), NO_API),
        ((200, {}, b"[" * 100_000), NO_API),
        ((200, {}, b"\xff\x00\x1b[2J"), NO_API),
        ((200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"), NO_API),
        ((200, {}, f"<html>{'x' * 190}{SECRET}".encode()), NO_API),
        ((200, {}, b'"' + b"x" * 10_000_000), "answers with more than 1,048,576 bytes"),
        ((401, {}, b'{"error": {"message": "no key %s"}}' % SECRET.encode()), "refuses (401 Unauthorized no key ***)"),
        ((404, {}, b"<html>" + b"x" * 5000), "refuses (404 Not Found)"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "refuses (302 Found)"),
    ],
)
def test_a_server_that_is_none_is_refused_in_one_line_without_the_key(server, monkeypatch, reply, line):
    monkeypatch.setenv("MY_KEY", SECRET)
    server.replies(reply)
    with pytest.raises(UsageError) as refused:
        Endpoint(server.url, "advisor", "MY_KEY")(PICTURES, PROMPTS)
    assert line in str(refused.value)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500
    assert SECRET[:6] not in str(refused.value)


def test_a_server_that_is_down_or_hangs_is_named(server):
    with pytest.raises(UsageError, match=r"http://127\.0\.0\.1:9/v1/chat/completions does not answer, asked 2 times"):
        Endpoint("http://127.0.0.1:9/v1/", "advisor", attempts=2)(PICTURES, PROMPTS)
    waiting = threading.Event()
    server.reply = lambda requests: (waiting.wait(10), GOOD)[1]
    with pytest.raises(UsageError, match=r"asked 1 times \(no answer within 0.05 seconds\)"):
        Endpoint(server.url, "advisor", attempts=1, timeout=0.05)(PICTURES[:1], PROMPTS[:1])
    waiting.set()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"url": None}, "understander.url=null must be an API's root, as http://localhost:8000/v1"),
        ({"url": "localhost"}, "understander.url=localhost must be an API's root"),
        ({"url": "file:///etc/passwd"}, "must be an API's root"),
        ({"url": "http://a:b/v1"}, "understander.url=http://a:b/v1 is no address"),
        ({"url": f"http://me:{SECRET}@host/v1"}, "holds a user or password"),
        ({"model": None}, "understander.model is needed"),
        ({"key_variable": SECRET}, "must name an environment variable, as OPENAI_API_KEY, not hold a key"),
        (
            {"key_variable": "NO_SUCH_KEY"},
            "understander.key_variable=NO_SUCH_KEY: this environment variable is not set",
        ),
        (
            {"key_variable": "MY_KEY"},
            "understander.key_variable=MY_KEY: this environment variable holds characters that",
        ),
        ({"tries": 0}, "understander.tries=0 must be at least 1"),
        ({"timeout": 0}, "understander.timeout=0 must be above 0"),
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused_at_once(monkeypatch, changed, line):
    monkeypatch.setenv("MY_KEY", f"{SECRET}\nX-Other: 1")
    with pytest.raises(UsageError) as refused:
        Endpoint(**{"url": "http://localhost:8000/v1", "model": "advisor"} | changed)
    assert line in str(refused.value)
    assert SECRET not in str(refused.value)
