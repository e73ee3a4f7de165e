"""Frozen text encoders that run once for each text: what is kept, what is forgotten, and where the encoder is."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.conftest import PROMPTS, add_text_encoder
from textcraftor.errors import UsageError
from textcraftor.models import remembering
from textcraftor.models.remembering import Remembered
from textcraftor.models.tuning import add_learners

TEXTS = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])


class Encoder(nn.Module):
    """Says its text's numbers as hidden states, and notes when it is moved and when it works."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def to(self, device):
        self.done.append(f"to {device}")
        return self

    def forward(self, input_ids, attention_mask=None):
        self.done.append(f"works on {len(input_ids)}")
        states = tuple((input_ids * layer).float()[..., None] for layer in (1, 2, 3))
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1], pooler_output=states[0][:, 0], hidden_states=states
        )


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


def works(encoder: Encoder) -> int:
    return sum(one.startswith("works") for one in encoder.done)


def test_each_text_is_encoded_once_and_said_as_the_encoder_says_it(encoder):
    ours = Remembered(encoder, [-2], torch.device("cpu"))
    texts = TEXTS[[0, 1, 0, 2]]
    found, wanted = ours(texts), Encoder()(texts)
    for name in ("last_hidden_state", "pooler_output"):
        assert torch.equal(found[name], wanted[name])
    assert torch.equal(found.hidden_states[-2], wanted.hidden_states[-2])
    assert torch.equal(found.hidden_states[1], wanted.hidden_states[1])
    assert works(encoder) == 3
    assert torch.equal(ours(texts.flip(0)).last_hidden_state, wanted.last_hidden_state.flip(0))
    assert works(encoder) == 3
    ours(texts[:1], attention_mask=torch.tensor([[1, 0]]))
    assert works(encoder) == 4, "another mask is another text"


def test_a_hidden_state_that_is_not_kept_is_refused(encoder):
    said = Remembered(encoder, [-2], torch.device("cpu"))(TEXTS)
    with pytest.raises(UsageError, match=r"hidden state -1 of a frozen text encoder is not kept; there are \[1\]"):
        said.hidden_states[-1]


def test_the_longest_unused_is_forgotten_and_comes_back_the_same(encoder, monkeypatch):
    ours = Remembered(encoder, [-2], torch.device("cpu"))
    first = ours(TEXTS[:1])
    monkeypatch.setattr(remembering, "CAPACITY", 2.5 * ours._bytes)
    for row in (1, 0, 2):  # the second is unused for longest when the third comes
        ours(TEXTS[row : row + 1])
    assert works(encoder) == 3
    ours(TEXTS[:1])
    assert works(encoder) == 3, "used again, so it stayed"
    again = ours(TEXTS[1:2])
    assert works(encoder) == 4, "forgotten"
    assert torch.equal(again.last_hidden_state, Encoder()(TEXTS[1:2]).last_hidden_state)
    assert torch.equal(ours(TEXTS).last_hidden_state[:1], first.last_hidden_state), (
        "a batch beyond the capacity is whole"
    )
    assert ours._bytes == sum(row.nbytes for row in ours._rows.values()) <= remembering.CAPACITY


def test_an_offloaded_encoder_is_on_the_device_only_while_it_works(encoder):
    """Told by its moves; `meta` stands for the device."""
    ours = Remembered(encoder, [-2], torch.device("meta"))
    ours.put("while_it_works")
    assert ours(TEXTS[:2]).last_hidden_state.device.type == "meta"
    assert encoder.done == ["to cpu", "to meta", "works on 1", "works on 1", "to cpu"]
    encoder.done.clear()
    ours(TEXTS[:2])
    assert encoder.done == [], "what is remembered needs no encoder"
    ours.put("resident")
    ours(TEXTS[2:3])
    assert encoder.done == ["to meta", "works on 1"]


def test_an_encoder_on_disk_is_mapped_whenever_it_has_worked_and_says_the_same(model):
    """Its weights are those of the file, bit for bit, and mapped anew; the file goes with what stands for it."""
    encoder = model.encoders()["text_encoder"]
    wanted = model.encode(PROMPTS, None).prompt.mixed["encoder_hidden_states"]
    kept = {name: weight.clone() for name, weight in encoder.state_dict().items()}
    model.remember()
    model.place({"text_encoder": "on_disk"})
    file = model.remembered["text_encoder"]._file
    first = {name: weight.data_ptr() for name, weight in encoder.state_dict().items()}
    said = model.encode(PROMPTS, None).prompt.mixed["encoder_hidden_states"]
    torch.testing.assert_close(said, wanted, rtol=0, atol=1e-5)
    for name, weight in encoder.state_dict().items():
        assert torch.equal(weight, kept[name]), name
        assert weight.data_ptr() != first[name], name
    assert not any(weight.requires_grad for weight in encoder.parameters())
    assert file.stat().st_size > sum(weight.nbytes for weight in kept.values())
    del model.readers["original"].text_encoder
    gc.collect()
    assert not file.exists()


def test_an_offloaded_encoder_leaves_the_device_when_it_fails(encoder, monkeypatch):
    ours = Remembered(encoder, [-2], torch.device("meta"))
    ours.put("while_it_works")

    def failing(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder, "forward", failing)
    with pytest.raises(torch.OutOfMemoryError):
        ours(TEXTS[:1])
    assert encoder.done[-1] == "to cpu"


def test_a_learner_is_never_remembered(model):
    """Its next text says something else after each step; the original beside it is remembered, and says the same."""
    before = model.encode(PROMPTS, None).prompt.mixed["encoder_hidden_states"]
    learner = add_text_encoder(model)
    model.remember()
    assert list(model.remembered) == ["text_encoder"]
    assert model.readers["tuned"].text_encoder is learner
    first = model.encode(PROMPTS, None, "tuned").prompt.mixed["encoder_hidden_states"]
    assert first.requires_grad
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.1
    second = model.encode(PROMPTS, None, "tuned").prompt.mixed["encoder_hidden_states"]
    assert (second - first).abs().max() > 1e-2
    remembered = model.encode(PROMPTS, None).prompt.mixed["encoder_hidden_states"]
    torch.testing.assert_close(remembered, before, rtol=0, atol=1e-5)
    model.remember()
    assert list(model.remembered) == ["text_encoder"], "twice is once"


@pytest.mark.parametrize(("lora", "movable"), [(None, ["text_encoder"]), ({"rank": 2, "alpha": 2.0}, [])])
def test_an_encoder_under_adapters_stays_where_they_are(model, lora, movable):
    """Adapters are on the original's own weights: to move the one would move the other. A whole copy has its own."""
    add_learners(model, {"text_encoder": {"lr": 1e-3, "span": [0, 1], "lora": lora}})
    assert [part.name for part in model.placeable() if part.alone] == movable
