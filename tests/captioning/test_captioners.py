"""Captioners: transformers' models through their own processors, the prefix captioner by its parts, the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

from tests.captioning.tiny_models import byte_level_tokenizer, save_gpt2, save_llava
from tests.conftest import WEIGHTS
from textcraftor.captioning.image_to_text import ImageToText
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.captioning.recaption import run as recaption
from textcraftor.cli import call, config_dir
from textcraftor.config.making import made
from textcraftor.data.records import Records
from textcraftor.errors import UsageError
from textcraftor.toybox.world2.records import write_records

PICTURES = [Image.new("RGB", (32, 40), (40 * i, 100, 200 - 40 * i)) for i in range(3)]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_records(folder, 10, seed=8)
    (folder / "00003.png").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def language_model(tmp_path_factory) -> str:
    """GPT-2, tiny and untrained, with a byte-level tokenizer of the world's words."""
    folder = tmp_path_factory.mktemp("gpt2")
    captions = (WEIGHTS.parent / "prompts" / "train.txt").read_text().splitlines()
    save_gpt2(folder, byte_level_tokenizer(folder, captions, size=320))
    return str(folder)


def test_blip_writes_what_its_own_class_writes(tmp_path):
    """With and without a prompt; what comes after the prompt is the caption."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = BertTokenizer.from_pretrained(WEIGHTS / "imagereward")
    ends = {
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = BlipConfig(
        text_config={
            **tower,
            **ends,
            "sep_token_id": tokenizer.sep_token_id,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 32,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    model = BlipForConditionalGeneration(config).eval()
    processor = BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for prompt in (None, "a picture of"):
        captioner = ImageToText(str(tmp_path), prompt, max_new_tokens=6)
        inputs = processor(images=PICTURES[:1], text=prompt, return_tensors="pt")
        with torch.no_grad():
            written = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=1)
        whole = processor.decode(written[0], skip_special_tokens=True)
        assert captioner(PICTURES)[0] == " ".join(whole.removeprefix(prompt or "").split())


def test_models_with_a_chat_template_are_asked_in_it(tmp_path):
    """LLaVA, tiny: the template's words are not in the caption; a batch says what its pictures say alone."""
    save_llava(tmp_path, AutoTokenizer.from_pretrained(WEIGHTS / "pipeline" / "tokenizer"))
    captioner = ImageToText(str(tmp_path), "a picture of the shapes", max_new_tokens=5)
    together = captioner(PICTURES)
    assert together == [captioner([picture])[0] for picture in PICTURES]
    assert any(together)
    assert not any("picture of the shapes" in text for text in together)
    with pytest.raises(UsageError, match=r"captioner.prompt is needed"):
        ImageToText(str(tmp_path), None)


@pytest.mark.parametrize("name", sorted(file.stem for file in (config_dir() / "captioner").glob("*.yaml")))
def test_every_captioners_configuration_is_what_its_class_takes(configure, name, tmp_path):
    """Up to the weights, which are not there: for both styles the folder is what is missed, for another the style."""
    for style in ("short", "descriptive"):
        keys = [f"captioner={name}", f"style={style}", f"captioner.path={tmp_path / 'nothing'}"]
        with pytest.raises(UsageError) as refused:
            made(configure("recaption", *keys).captioner, device="cpu")
        assert "nothing" in str(refused.value)
    if name in ("florence2", "qwen_vl"):
        with pytest.raises(UsageError, match=r"style=long: captioner.prompt knows short, descriptive"):
            made(configure("recaption", f"captioner={name}", "style=long").captioner, device="cpu")


def test_a_prefix_captioner_learns_its_pictures_by_heart_and_keeps_them_when_saved(language_model, tmp_path):
    """And its loss is the language model's own on prefix and caption."""
    torch.manual_seed(0)
    captioner = PrefixCaptioner(str(WEIGHTS / "aesthetic_clip"), language_model, prefix_length=3, max_new_tokens=20)
    captions, embeds = ["a red circle", "a blue star and a green ring", "a cross"], captioner.embed(PICTURES)
    ids = torch.tensor([[*captioner._ids(captions[1]), captioner.tokenizer.eos_token_id]])
    words = captioner.language_model.get_input_embeddings()(ids)
    inputs = torch.cat([captioner.prefix(embeds[1:2]), words], 1)
    labels = torch.cat([torch.full((1, 3), -100), ids], 1)
    captioner.language_model.eval()
    wanted = captioner.language_model(inputs_embeds=inputs, labels=labels).loss
    torch.testing.assert_close(captioner.loss(embeds[1:2], captions[1:2]), wanted)
    learning = [*captioner.language_model.parameters(), *captioner.mapper.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        captioner.loss(embeds, captions).backward()
        optimizer.step()
    assert captioner(PICTURES) == captions
    captioner.save(tmp_path)
    assert PrefixCaptioner.load(str(tmp_path))(PICTURES) == captions
    with pytest.raises(UsageError, match=r"nowhere holds no captioner.json"):
        PrefixCaptioner.load("nowhere")


def test_training_then_recaptioning_through_the_commands(world, language_model, tmp_path):
    """The recipe's three captioners; captions for all but the broken picture; an interrupted pass goes on."""
    stages = [f"stages.{name}.steps=3" for name in ("base", "short", "descriptive")]
    folder = call(
        "train-captioner",
        [
            f"data.path={world}",
            f"captioner.clip={WEIGHTS / 'aesthetic_clip'}",
            f"captioner.language_model={language_model}",
            "captioner.max_new_tokens=20",
            *stages,
            "batch_size=4",
            f"run_dir={tmp_path / 'captioner'}",
        ],
    )
    assert {path.name for path in folder.iterdir()} == {"base", "short", "descriptive", "config.yaml", "finished.json"}
    keys = [f"data.path={world}", f"captioner.path={folder}", "style=descriptive", "batch_size=4"]
    done = tmp_path / "captions"
    done.mkdir()
    (done / "captions.0.part").write_text('{"key": "00001.png", "text": "kept", "kind": "descriptive"}\n{"key": "000')
    call("recaption", [*keys, f"run_dir={done}"])
    rows = {row["key"]: row for row in map(json.loads, (done / "captions.jsonl").read_text().splitlines())}
    skipped = json.loads((done / "skipped.json").read_text())
    assert rows["00001.png"]["text"] == "kept"
    assert "cannot be read" in skipped["00003.png"]
    assert set(rows) | set(skipped) == {f"{index:05d}.png" for index in range(10)}
    others = [row for row in rows.values() if row["text"] != "kept"]
    assert all(row["model"] == str(folder / "descriptive") and row["kind"] == "descriptive" for row in others)
    records = Records.read(world, [done / "captions.jsonl"])
    assert rows["00001.png"]["text"] in records.records[1].synthetic["descriptive"]
    with pytest.raises(UsageError, match="already holds captions"):
        call("recaption", [*keys, f"run_dir={done}"])


class Silent:
    """A captioner that says nothing of every second picture."""

    name, prompt = "silent", None

    def __init__(self, device: str, always: bool = False, **_) -> None:
        self.always = always

    def __call__(self, pictures):
        return ["" if self.always or number % 2 else "bright" for number, _ in enumerate(pictures)]


def test_a_captioner_that_says_nothing_is_counted_or_refused(configure, world, tmp_path):
    silent = "captioner._target_=tests.captioning.test_captioners.Silent"
    keys = [f"data.path={world}", silent, "captioner.path=none"]
    recaption(configure("recaption", *keys), tmp_path / "some")
    skipped = json.loads((tmp_path / "some" / "skipped.json").read_text())
    assert "the captioner said nothing" in skipped.values()
    with pytest.raises(UsageError, match=r"no picture of .* got a caption"):
        recaption(configure("recaption", *keys, "+captioner.always=true"), tmp_path / "none")
    with pytest.raises(UsageError, match=r"stages.base.kind=long: no record has such captions; there are short, descr"):
        call("train-captioner", [f"data.path={world}", "stages.base.kind=long", f"run_dir={tmp_path / 'x'}"])
    with pytest.raises(UsageError, match=r"stages.base.start=short must name a stage before it"):
        call("train-captioner", [f"data.path={world}", "stages.base.start=short"])
    with pytest.raises(UsageError, match=r"captioner.path is needed"):
        call("recaption", [f"data.path={world}", f"run_dir={tmp_path / 'y'}"])
