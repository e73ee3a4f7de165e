"""What stands on SigLIP: a folder scores as transformers' own processor and model do, and under V2.5's head as its
published forward pass says; a folder of another model is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from parity import folders
from transformers import AutoTokenizer, SiglipModel, SiglipVisionModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.rewards.checking import check_gradient, images, largest, pictures
from textcraftor.errors import UsageError
from textcraftor.rewards.aesthetic import Aesthetic
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


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    file = tmp_path_factory.mktemp("head") / "aesthetic_predictor_v2_5.pth"
    folders.write_v25_head(file)
    return str(file)


def test_v25_is_its_head_on_the_normalised_pooled_embedding(folder, head):
    scorer = Aesthetic.load(folder, head)
    processor, model = SiglipImageProcessorPil.from_pretrained(folder), SiglipVisionModel.from_pretrained(folder)
    with torch.no_grad():
        pixels = torch.cat([processor(picture, return_tensors="pt").pixel_values for picture in pictures()])
        embeds = model(pixels).pooler_output
        expected = embeds / embeds.norm(dim=-1, keepdim=True)
        state = torch.load(head, weights_only=True)
        for index in (0, 2, 4, 6, 8):  # no activation between them
            weight, bias = (state[f"scoring_head.{index}.{part}"].float() for part in ("weight", "bias"))
            expected = expected @ weight.T + bias
    scores = torch.cat([scorer(image, PROMPTS[:1]) for image in images()])
    assert expected.std() > 1e-4
    assert largest(scores, expected[:, 0]) < 1e-3 * expected.std()
    check_gradient(scorer, images()[1], PROMPTS[:1])


def test_a_head_of_another_embedding_is_refused(folder, head, tmp_path):
    state = torch.load(head, weights_only=True)
    state["scoring_head.0.weight"] = torch.zeros(1024, 1152)
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(UsageError, match=r"width 1152, but .* gives 32"):
        Aesthetic.load(folder, str(tmp_path / "wide.pth"))
    del state["scoring_head.8.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(UsageError, match=r"key 'scoring_head.8.bias' is missing"):
        Aesthetic.load(folder, str(tmp_path / "cut.pth"))


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
