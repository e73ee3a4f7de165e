"""How well the published reader reads the toyboxes' words, and what it costs: `python scripts/measure_reader.py`.

Rendered scenes with a word, of both worlds; PP-OCRv6 tiny reads the word's row, once free to answer anything that it
knows and once in capitals alone, as the judges' figure `read` does. The share of letters is 1 - edit distance / length,
spaces aside.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from results import new_parser, show

from textcraftor.toybox import judge, published_reader, render, scenes
from textcraftor.toybox.world2 import judge as judge2
from textcraftor.toybox.world2 import render as render2
from textcraftor.toybox.world2 import scenes as scenes2


def with_word(
    sample: Callable, draw: Callable, keep: Callable = lambda scene: True
) -> Iterator[tuple[np.ndarray, str, str]]:
    """Pictures (64, 64, 3), their words and the words' rows, for ever."""
    rng = np.random.default_rng(0)
    while True:
        scene = sample(rng, word_probability=1.0)
        if scene.word and keep(scene):
            yield draw(scene), scene.word.text, scene.word.row


def is_crisp_in_good_light(scene: scenes2.Scene) -> bool:
    return scene.style.light == "good" and scene.style.softness == 0


def worlds() -> dict[str, Iterator[tuple[np.ndarray, str, str]]]:
    """What is read, by name."""
    second = scenes2.sample_scene, render2.render
    return {
        "world 1": with_word(scenes.sample_scene, render.render),
        "world 2, crisp and in good light": with_word(*second, is_crisp_in_good_light),
        "world 2, out of focus": with_word(*second, lambda scene: scene.style.softness > 0),
        "world 2, dark or faded": with_word(*second, lambda scene: scene.style.light != "good"),
        "world 2, all styles": with_word(*second),
    }


def letters_read(drawn: list[tuple[np.ndarray, str, str]], alphabet: str | None) -> float:
    """The share of all letters."""
    tops = [published_reader.ROWS[row] for _, _, row in drawn]
    rows = [picture[top : top + scenes.LETTER_CELL] for (picture, _, _), top in zip(drawn, tops, strict=True)]
    texts = published_reader.read_rows(torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2), alphabet)
    words = [word for _, word, _ in drawn]
    shares = [published_reader.agreement(word, "".join(text.split())) for word, text in zip(words, texts, strict=True)]
    return float(np.average(shares, weights=[len(word) for word in words]))


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """Median processor time."""
    times = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return float(np.median(times))


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=int, default=100, help="pictures of each kind")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    drawn = {name: [next(pictures) for _ in range(arguments.count)] for name, pictures in worlds().items()}
    rows = [
        [name, *(letters_read(own, alphabet) for alphabet in (None, scenes.LETTERS))] for name, own in drawn.items()
    ]
    columns = [f"{arguments.count} rendered words", ("letters read, free", ".3f"), ("in capitals alone", ".3f")]
    show("reader", "letters", columns, rows, arguments.store)
    costs = []
    for number, (name, first) in enumerate((("world 1", judge), ("world 2, all styles", judge2)), 1):
        images = torch.from_numpy(np.stack([picture for picture, _, _ in drawn[name]])).permute(0, 3, 1, 2)
        prompts = [f'a red circle with the word "{word}" at the {row}' for _, word, row in drawn[name]]
        wanted = [(word, row) for _, word, row in drawn[name]]
        whole = seconds(lambda images=images, prompts=prompts, first=first: first.Judge()(images, prompts))
        alone = seconds(lambda images=images, wanted=wanted: published_reader.share_read(images, wanted))
        scale = 100 / len(prompts)
        costs += [[f"judge of world {number}, all its figures", scale * whole], ["of them `read`", scale * alone]]
    columns = ["of 100 pictures that want a word", ("seconds of one processor", ".2f")]
    show("reader", "costs", columns, costs, arguments.store)


if __name__ == "__main__":
    main()
