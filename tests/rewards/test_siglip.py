"""A SigLIP folder scores as transformers' own processor and model do; a folder of another model is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from parity import folders
from transformers import AutoTokenizer, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.rewards.checking import check_gradient, images, largest, pictures
from textcraftor.errors import UsageError
from textcraftor.rewards.clip import ClipScore

PROMPTS = ["A red circle, and a BLUE star!", "please answer yes or no", "the word"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    folders.write_siglip(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(folder):
    return ClipScore.load(folder)


def test_its_pixels_and_cosines_are_those_of_transformers_own_processor_and_model(folder, scorer):
    """The model's own logit is scale * cosine + bias; pictures that are not square are squeezed, not cropped."""
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    expected = torch.stack([processor(picture, return_tensors="pt").pixel_values[0] for picture in pictures()])
    pixels = torch.cat([scorer.pixels(image) for image in images()])
    assert largest(pixels, expected) < 1e-5
    tokens = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", max_length=16, truncation=True, return_tensors="pt"
    )
    model = SiglipModel.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=tokens.input_ids, pixel_values=expected).logits_per_image.diagonal()
        cosines = (logits - model.logit_bias) / model.logit_scale.exp()
    scores = torch.cat([scorer(image, [prompt]) for image, prompt in zip(images(), PROMPTS, strict=True)])
    assert cosines.std() > 1e-2
    assert largest(scores, cosines) < 1e-5


def test_its_gradient_agrees_with_finite_differences(scorer):
    check_gradient(scorer, images()[1], PROMPTS[:1])


def test_prompts_are_read_in_lower_case(scorer):
    """SigLIP 2's tokenizer, unlike SigLIP's, does not lower prompts itself, although both models were trained so."""
    assert scorer.tokenize.prepare("A Red") == "a red"


def test_a_folder_of_another_model_is_refused_before_its_weights_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    file = tmp_path / "other" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "siglip2"}))
    with pytest.raises(UsageError, match="model_type 'siglip2' is not supported; use one of clip, siglip"):
        ClipScore.load(str(tmp_path / "other"))
