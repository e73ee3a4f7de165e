"""The prompt that a picture was made by is found where each interface writes it, and nowhere else."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from textcraftor.data.picture_prompts import prompt_of
from textcraftor.errors import UsageError

PROMPT = 'a red circle, "KKQ"\nand a blue star'
SETTINGS = "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model hash: abc, Version: v1.10"
PARAMETERS = f"{PROMPT}\nNegative prompt: blurry, Steps\nmore of it\n{SETTINGS}"


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(positive: object, **more: dict) -> str:
    """A ComfyUI graph whose sampler is conditioned on this; a negative text stands first."""
    nodes = {
        "1": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "2": node("CLIPTextEncode", text=PROMPT, clip=["4", 1]),
        "3": node("KSampler", seed=1, positive=positive, negative=["1", 0], model=["4", 0], latent_image=["5", 0]),
        "4": node("CheckpointLoaderSimple", ckpt_name="x.safetensors"),
        "5": node("EmptyLatentImage", width=64, height=64),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="ComfyUI"),
    }
    return json.dumps(nodes | more)


FLUX = {
    "3": node("SamplerCustomAdvanced", noise=["10", 0], guider=["11", 0], latent_image=["5", 0]),
    "11": node("BasicGuider", model=["4", 0], conditioning=["12", 0]),
    "12": node("FluxGuidance", guidance=3.5, conditioning=["13", 0]),
    "13": node("CLIPTextEncodeFlux", clip_l="other words", t5xxl=PROMPT, guidance=3.5, clip=["4", 1]),
}
GRAPHS = {
    "plain": graph(["2", 0]),
    "SDXL": graph(["7", 0], **{"7": node("CLIPTextEncodeSDXL", text_g=PROMPT, text_l="other words", width=64)}),
    "FLUX": graph(None, **FLUX),
    "control": graph(
        ["7", 0], **{"7": node("ControlNetApplyAdvanced", negative=["1", 0], positive=["2", 0], strength=1.0)}
    ),
    "a node for the text": graph(
        ["7", 0],
        **{"7": node("CLIPTextEncode", text=["6", 0], clip=["4", 1]), "6": node("PrimitiveString", value=PROMPT)},
    ),
    "a node for each piece of text": graph(
        ["7", 0],
        **{
            "7": node("CLIPTextEncode", text=["6", 0], clip=["4", 1]),
            "6": node("StringConcatenate", string_a=PROMPT[:8], string_b=PROMPT[8:], delimiter=""),
        },
    ),
    "a node for both texts": graph(
        ["7", 0],
        **{
            "7": node("CLIPTextEncode", text=["6", 0], clip=["4", 1]),
            "6": node("SDXLPromptStyler", text_positive=PROMPT, text_negative="blurry", style="base"),
        },
    ),
    "text in the loader": graph(
        ["7", 1], **{"7": node("Efficient Loader", positive=PROMPT, negative="blurry", ckpt_name="x")}
    ),
    "two passes": graph(
        ["2", 0],
        **{
            "8": node("VAEDecode", samples=["20", 0], vae=["4", 2]),
            "20": node("KSampler", positive=["2", 0], negative=["1", 0], latent_image=["21", 0]),
            "21": node("LatentUpscale", samples=["3", 0]),
        },
    ),
    "a sampler that is not saved": graph(
        ["2", 0],
        **{
            "0": node("KSampler", positive=["22", 0], negative=["1", 0], latent_image=["5", 0]),
            "22": node("CLIPTextEncode", text="never seen", clip=["4", 1]),
        },
    ),
}
TEXTS = {
    "ours": {"prompt": PROMPT, "settings": "{}", "seed": "3"},
    "AUTOMATIC1111": {"parameters": PARAMETERS},
    "AUTOMATIC1111 without a negative prompt": {"parameters": f"{PROMPT}\n{SETTINGS}"},
    "SwarmUI": {"parameters": json.dumps({"sui_image_params": {"prompt": PROMPT, "negativeprompt": "blurry"}})},
    "Fooocus": {"parameters": json.dumps({"prompt": PROMPT, "negative_prompt": "blurry"}), "fooocus_scheme": "fooocus"},
    "InvokeAI": {"invokeai_metadata": json.dumps({"positive_prompt": PROMPT, "negative_prompt": "blurry"})},
    "InvokeAI 2": {"sd-metadata": json.dumps({"image": {"prompt": [{"prompt": PROMPT, "weight": 1.0}]}})},
    "InvokeAI 1": {"Dream": f'"{PROMPT.replace(chr(34), chr(39))}" -s 50 -W 512'},
    "NovelAI": {"Software": "NovelAI", "Description": PROMPT, "Comment": json.dumps({"steps": 28})},
    **{f"ComfyUI: {name}": {"prompt": text, "workflow": "{}"} for name, text in GRAPHS.items()},
}


def png(file: Path, texts: dict[str, str]) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_itxt(name, text)
    Image.new("RGB", (64, 64), "red").save(file, pnginfo=info)
    return file


def with_exif(file: Path, fields: dict[int, str], comment: bytes | None = None) -> Path:
    exif = Image.Exif()
    for tag, value in (fields or {ExifTags.Base.Software: "x"}).items():
        exif[tag] = value
    if comment is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    Image.new("RGB", (64, 64), "red").save(file, exif=exif)
    return file


def prompt_or_line(file: Path) -> str | tuple[str] | None:
    """The prompt of a picture, or the line that refuses it, apart from each other."""
    try:
        return prompt_of(file)
    except UsageError as error:
        return (str(error),)


@pytest.mark.parametrize("name", TEXTS)
def test_the_prompt_is_found_in_a_pngs_text(tmp_path, name):
    wanted = PROMPT.replace('"', "'") if name == "InvokeAI 1" else PROMPT
    assert prompt_of(png(tmp_path / "a.png", TEXTS[name])) == wanted


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + PARAMETERS.encode("utf-16-be"),
        b"UNICODE\0" + PARAMETERS.encode("utf-16-le"),
        b"UNICODE\0" + PARAMETERS.encode("utf-16"),
        b"ASCII\0\0\0" + PARAMETERS.encode(),  # which writers fill with UTF-8
        b"\0" * 8 + PARAMETERS.encode(),
        PARAMETERS.encode(),
        b"UNICODE\0" + PROMPT.encode("utf-16-be"),
    ],
)
def test_the_prompt_is_found_in_exifs_comment(tmp_path, suffix, comment):
    assert prompt_of(with_exif(tmp_path / f"a{suffix}", {}, comment)) == PROMPT


def test_a_graph_in_webps_exif_is_read_as_one_in_a_pngs_text(tmp_path):
    fields = {ExifTags.Base.Make: "workflow:{}", ExifTags.Base.Model: f"prompt:{GRAPHS['plain']}"}
    assert prompt_of(with_exif(tmp_path / "a.webp", fields)) == PROMPT


def test_several_texts_of_one_conditioning_are_joined(tmp_path):
    more = {
        "7": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["6", 0]),
        "6": node("CLIPTextEncode", text="at night", clip=["4", 1]),
    }
    assert prompt_of(png(tmp_path / "a.png", {"prompt": graph(["7", 0], **more)})) == f"{PROMPT}, at night"


def test_what_is_no_prompt_is_none(tmp_path):
    """Graphs without a text, a camera's words, JSON of others; and a graph that leads in a circle ends."""
    circle = {"7": node("ConditioningCombine", conditioning_1=["7", 0], conditioning_2=["3", 0])}
    nothing = [
        {},
        {"Description": "a holiday", "Software": "Paint", "Comment": "made with care", "Title": "x"},
        {"prompt": graph(["7", 0], **circle)},
        {"prompt": graph(["77", 0])},
        {"prompt": json.dumps({"nodes": [], "links": []})},
        {"prompt": "  ", "parameters": f"\n{SETTINGS}"},
        {"invokeai_metadata": json.dumps({"positive_prompt": ""})},
    ]
    for number, texts in enumerate(nothing):
        assert prompt_of(png(tmp_path / f"{number}.png", texts)) is None, texts
    file = with_exif(tmp_path / "a.jpg", {ExifTags.Base.ImageDescription: "OLYMPUS DIGITAL CAMERA"})
    assert prompt_of(file) is None


@pytest.mark.parametrize(
    "prompt",
    [
        '"HELLO" - a neon sign',  # which is not InvokeAI's "the prompt" -s 50
        "stairs\nSteps: made of stone",  # which are not AUTOMATIC1111's settings
        "a red\u2028circle and\x85 a star",
        "{red|blue} circle",
    ],
)
def test_a_prompt_that_looks_like_something_else_is_read_whole(tmp_path, prompt):
    assert prompt_of(png(tmp_path / "a.png", {"prompt": prompt})) == prompt
    assert prompt_of(png(tmp_path / "a.png", {"parameters": f"{prompt}\nNegative prompt: x\n{SETTINGS}"})) == prompt


def test_a_cameras_comment_that_is_no_text_is_none(tmp_path):
    for comment in (b"\0" * 8 + b"\xff\x13\x80", b"UNICODE\0abc"):
        assert prompt_of(with_exif(tmp_path / "a.jpg", {}, comment)) is None
    assert prompt_of(with_exif(tmp_path / "a.jpg", {}, b"ASCII\0\0\0" + "café".encode())) == "café"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT"])
def test_a_text_file_beside_the_picture_speaks_where_the_picture_does_not(tmp_path, suffix):
    silent, speaking = png(tmp_path / "a.png", {}), png(tmp_path / "b.png", {"prompt": "a star"})
    for file in (silent, speaking):
        file.with_suffix(suffix).write_text(PARAMETERS)
    assert (prompt_of(silent), prompt_of(speaking)) == (PROMPT, "a star")
    silent.with_suffix(suffix).write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match=rf"a{suffix} is no text in UTF-8"):
        prompt_of(silent)


def test_damaged_pictures_end_in_one_line(tmp_path):
    """Bytes of whole files, altered at random: a prompt, none, or one line that names the file."""
    sources = [png(tmp_path / "a.png", TEXTS["ours"]), with_exif(tmp_path / "a.jpg", {}, PARAMETERS.encode())]
    rng = random.Random(0)
    for number in range(120):
        content = bytearray(sources[number % 2].read_bytes())
        for _ in range(rng.randint(1, 6)):
            content[rng.randrange(min(len(content), 700))] = rng.randrange(256)
        file = tmp_path / f"damaged{sources[number % 2].suffix}"
        file.write_bytes(content if number % 3 else content[: rng.randrange(len(content))])
        outcome = prompt_or_line(file)
        assert outcome is None or isinstance(outcome, str) or (file.name in outcome[0] and "\n" not in outcome[0])


def test_deep_json_and_long_chains_end(tmp_path):
    chain = {str(n): node("ConditioningZero", conditioning=[str(n + 1), 0]) for n in range(30, 5000)}
    for text in (graph(["30", 0], **chain), '{"a":' * 50_000):
        outcome = prompt_or_line(png(tmp_path / "a.png", {"prompt": text}))
        assert outcome in (None, text) or "a.png is damaged" in outcome[0]
