"""The toybox's small model that answers questions about pictures: `python scripts/toybox_vqa.py`.

LLaVA's layout: the world's CLIP looks, a small Llama that knows nothing yet answers. It learns from rendered scenes
what each protocol of `judge=vlm` asks: questions with choices, verdicts with a reason, yes or no about a prompt or a
chunk of it, and which of two pictures fits better. Then held-out scenes grade it by the world's truth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from results import new_parser, show
from tokenizers import ByteLevelBPETokenizer
from toybox_questions import questions_about, told_wrong, true_answer, true_share
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    GPT2TokenizerFast,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from textcraftor.captioning.understanding import AskedModel
from textcraftor.evaluation.judging.chunks import simple_chunks
from textcraftor.evaluation.judging.pairwise import WHICH
from textcraftor.evaluation.judging.protocols import B_VQA, VQASCORE
from textcraftor.evaluation.judging.vlm import OPTIONS, VERDICT
from textcraftor.toybox.world2.captions import descriptive, short
from textcraftor.toybox.world2.render import render
from textcraftor.toybox.world2.scenes import IMAGE_SIZE, Scene, sample_scene
from textcraftor.training.fitting import FitSettings, fit

CLIP = Path("textcraftor/toybox/world2/weights/clip")
PART = "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
TEMPLATE = f"{{% for m in messages %}}{{% for c in m.content %}}{PART}{{% endfor %}}{{% endfor %}}"
IMAGE, END = "<image>", "<|endoftext|>"
Example = tuple[list[Scene], str, str]  # scenes that are shown, what is asked, what is answered


def prompted(scene: Scene, rng: np.random.Generator) -> tuple[str, bool]:
    """A prompt, and whether a scene shows all of it; every second one is wrong."""
    told = told_wrong(scene, rng) if rng.random() < 0.5 else scene
    prompt = descriptive(told) if rng.random() < 0.5 else short(told)
    return prompt, true_share(scene, prompt) == 1


def with_choices(scene: Scene, rng: np.random.Generator) -> Example:
    """One of the questions about a prompt that has an answer."""
    prompt, _ = prompted(scene, rng)
    asked = [(one, answer) for one in questions_about(prompt) if (answer := true_answer(scene, one))]
    question, answer = asked[int(rng.integers(len(asked)))]
    return [scene], OPTIONS.format(question.text, ", ".join(question.choices)), answer


def verdict(scene: Scene, rng: np.random.Generator) -> Example:
    """With the number of wrong questions as a reason."""
    prompt, right = prompted(scene, rng)
    wrong = sum(true_answer(scene, one) != one.expected for one in questions_about(prompt))
    return [scene], VERDICT.replace("{}", prompt), f"{wrong} wrong.\n{'correct' if right else 'incorrect'}"


def yes_or_no(scene: Scene, rng: np.random.Generator) -> Example:
    """VQAScore's question about a prompt."""
    prompt, right = prompted(scene, rng)
    return [scene], VQASCORE[0].replace("{}", prompt), "Yes" if right else "No"


def chunk(scene: Scene, rng: np.random.Generator) -> Example:
    """B-VQA's question about a shape."""
    told = told_wrong(scene, rng) if rng.random() < 0.5 else scene
    part = str(rng.choice(simple_chunks(short(told))))
    right = any(f"{shape.color} {shape.shape}" in part for shape in scene.shapes)
    return [scene], B_VQA[0].replace("{}", part), "yes" if right else "no"


def pair(scene: Scene, rng: np.random.Generator) -> Example:
    """Two scenes under the prompt of one of them, or a scene twice."""
    other = told_wrong(scene, rng) if rng.random() < 0.8 else scene
    shown = [scene, other] if rng.random() < 0.5 else [other, scene]
    first, second = (true_share(one, descriptive(scene)) for one in shown)
    chosen = "tie" if first == second else "first" if first > second else "second"
    return shown, WHICH.replace("{}", descriptive(scene)), f"{first:.1f} and {second:.1f}.\n{chosen}"


KINDS: dict[str, Callable[[Scene, np.random.Generator], Example]] = {
    "choices": with_choices,
    "verdict": verdict,
    "yes or no": yes_or_no,
    "chunk": chunk,
    "pair": pair,
}


def example(seed: int, number: int, split: str = "train", kind: str | None = None) -> Example:
    """One question, drawn by its number."""
    rng = np.random.default_rng((seed, number))
    scene = sample_scene(rng, split)  # type: ignore[arg-type]
    return KINDS[kind or list(KINDS)[number % len(KINDS)]](scene, rng)


def picture_of(scene: Scene) -> Image.Image:
    """A scene as a picture of 8 bits a channel."""
    return Image.fromarray((render(scene) * 255).round().astype(np.uint8))


def new_model(folder: Path, width: int = 192, layers: int = 4) -> None:
    """The untrained model in LLaVA's published layout; its eyes are the world's CLIP."""
    texts = ["".join(example(0, number)[1:]) for number in range(400)]
    pairs = ByteLevelBPETokenizer()
    pairs.train_from_iterator(texts, vocab_size=1200, special_tokens=[END], show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    pairs.save(str(folder / "tokenizer.json"))
    tokenizer = GPT2TokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    eyes = CLIPVisionModel.from_pretrained(CLIP, dtype=torch.float32)
    text = {"model_type": "llama", "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    text |= {"num_attention_heads": width // 32, "vocab_size": len(tokenizer), "max_position_embeddings": 1024}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    image = {"image_token_index": tokenizer.convert_tokens_to_ids(IMAGE), "vision_feature_layer": -1}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=eyes.config.to_dict(), text_config=text, **image))
    model.model.vision_tower.load_state_dict(eyes.state_dict())
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE),
        tokenizer,
        patch_size=eyes.config.patch_size,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


def train(folder: Path, steps: int, batch: int, device: str) -> None:
    """On questions of all kinds in turn; a stopped training goes on from its last checkpoint."""
    new_model(folder / "new")
    processor = LlavaProcessor.from_pretrained(folder / "new")
    model = LlavaForConditionalGeneration.from_pretrained(folder / "new", dtype=torch.float32).to(device).train()
    tokenizer, places = processor.tokenizer, (IMAGE_SIZE // processor.patch_size) ** 2

    def loss_of(step: int) -> dict[str, torch.Tensor]:
        examples = [example(83, step * batch + place) for place in range(batch)]
        rows, labels = [], []
        for shown, question, answer in examples:
            asked = tokenizer(IMAGE * places * len(shown) + question).input_ids
            told = [*tokenizer(answer).input_ids, tokenizer.eos_token_id]
            rows.append(torch.tensor([*asked, *told]))
            labels.append(torch.tensor([*[-100] * len(asked), *told]))
        pictures = [picture_of(scene) for shown, _, _ in examples for scene in shown]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = torch.arange(padded.shape[1])[None] < torch.tensor([[len(row)] for row in rows])
        wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        pixels = processor.image_processor(pictures, return_tensors="pt").pixel_values
        inputs = {"input_ids": padded, "attention_mask": mask.long(), "labels": wanted, "pixel_values": pixels}
        return {"nll": model(**{name: value.to(device) for name, value in inputs.items()}).loss}

    fit("vqa", model, loss_of, FitSettings(steps, 5e-4, weight_decay=0.05, ema_decay=0.999), folder)
    model.save_pretrained(folder / "vqa")
    processor.save_pretrained(folder / "vqa")


def right(model: AskedModel, kind: str, count: int) -> float:
    """The share of held-out questions of a kind that are answered right; what cannot be read is wrong here."""
    examples = [example(84, number, "validation", kind) for number in range(count)]
    shown = [[picture_of(scene) for scene in scenes] for scenes, _, _ in examples]
    texts = model.answers(shown, [question for _, question, _ in examples], 0)
    wanted = [answer.splitlines()[-1] for _, _, answer in examples]
    return float(np.mean([text.splitlines()[-1:] == [answer] for text, answer in zip(texts, wanted, strict=True)]))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/vqa"))
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=32, help="questions a step")
    parser.add_argument("--count", type=int, default=300, help="held-out questions of each kind")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if not (arguments.folder / "vqa" / "config.json").exists():
        train(arguments.folder, arguments.steps, arguments.batch, arguments.device)
    model = AskedModel(str(arguments.folder / "vqa"), tries=1, max_new_tokens=40, device=arguments.device)
    rows = [[kind, arguments.count, right(model, kind, arguments.count)] for kind in KINDS]
    show("judges", "vqa", ["question", "held out", ("answered right", ".3f")], rows, arguments.store)


if __name__ == "__main__":
    main()
