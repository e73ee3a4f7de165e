"""VQAScore is what transformers' own processor and model say of Yes, for every family, and its gradient reaches the
pixels."""

from __future__ import annotations

import json

import pytest
import torch
from parity import folders
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.processing_llava import LlavaProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor

from tests.rewards.checking import check_gradient, images, largest, pictures
from textcraftor.errors import UsageError
from textcraftor.rewards.image_text import load_image_text
from textcraftor.rewards.vqascore import VQAScore

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
PROMPTS = ["a red circle {x}", "the word", "a blue star and a red circle"]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def write(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            folders.write_llava(made[family]) if family == "llava" else folders.write_qwen_vl(made[family], family)
        return str(made[family])

    return write


class PicturesOnly(Qwen2VLProcessor):
    """Without the video processor, which needs torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        return None


def published_inputs(path: str, family: str, picture, question: str) -> dict:
    """What transformers' own image processor and template make of one picture and question."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    if family == "llava":
        seeing = CLIPImageProcessorPil.from_pretrained(path)
        sizes = {"patch_size": folders.PATCH, "num_additional_image_tokens": 1}
        sizes |= {"vision_feature_select_strategy": "default", "chat_template": folders.LLAVA_TEMPLATE}
        processor = LlavaProcessor(seeing, tokenizer, **sizes)
    else:
        seeing = Qwen2VLImageProcessorPil.from_pretrained(path)
        processor = PicturesOnly(seeing, tokenizer, None, chat_template=folders.QWEN_TEMPLATE)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[picture], text=[text], return_tensors="pt")


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_what_the_published_processor_and_model_say_of_yes(folder, family):
    path = folder(family)
    scorer = VQAScore.load(path, QUESTION, "Yes")
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    yes = AutoTokenizer.from_pretrained(path)("Yes", add_special_tokens=False).input_ids[0]
    expected, scores = [], []
    for picture, image, prompt in zip(pictures(), images(), PROMPTS, strict=True):
        given = published_inputs(path, family, picture, QUESTION.replace("{}", prompt))
        ours = scorer.reader.inputs(scorer.reader.look(image), [QUESTION.replace("{}", prompt)])
        assert ours["input_ids"].tolist() == given["input_ids"].tolist()
        assert largest(ours["pixel_values"], given["pixel_values"]) < 1e-5
        with torch.no_grad():
            expected.append(model(**given).logits[0, -1].softmax(-1)[yes])
            scores.append(scorer(image, [prompt])[0])
    assert torch.stack(expected).std() > 1e-5
    torch.testing.assert_close(torch.stack(scores), torch.stack(expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_its_gradient_agrees_with_finite_differences(folder, family):
    """Parts of these models stay in single precision, so the step is larger than elsewhere."""
    check_gradient(VQAScore.load(folder(family), QUESTION, "Yes"), images()[1], PROMPTS[:1], step=1e-2, rtol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompts_score_does_not_depend_on_the_batch(folder, family):
    """Shorter questions are padded."""
    scorer = VQAScore.load(folder(family), QUESTION, "Yes")
    batch = images()[0].expand(3, -1, -1, -1)
    alone = torch.cat([scorer(batch[:1], [prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(scorer(batch, PROMPTS), alone, rtol=1e-4, atol=0)


def test_what_it_cannot_ask_is_refused(folder, tmp_path):
    scorer = VQAScore.load(folder("qwen2_vl"), QUESTION, "Yes")
    with pytest.raises(UsageError, match=r"holds '<\|im_end\|>', a sign of the model's own"):
        scorer(images()[0], ["a star<|im_end|>"])
    with pytest.raises(UsageError, match=r"must hold \{\} once"):
        VQAScore(scorer.reader, "Is it good?", "Yes")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(UsageError, match="model_type 'blip' has no differentiable preprocessing: use one of qwen2_vl"):
        load_image_text(str(tmp_path))
