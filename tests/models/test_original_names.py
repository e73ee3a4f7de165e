"""What single files call their tensors, read back by diffusers' own converters at the published sizes."""

from __future__ import annotations

import pytest
import torch

from textcraftor.models.layout import read_layout, skeleton
from textcraftor.models.model import family_of
from textcraftor.models.original_names import own_names
from textcraftor.models.published_names import weights_of


class Shaped:
    """A network's tensors with every row a number of its own, and one column: converters cut and join rows alone."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.config, self.rows = network.config, {}
        for number, (key, one) in enumerate(weights_of(network).items()):
            rows = torch.arange(one.shape[0], dtype=torch.float64) + 1e6 * number
            self.rows[key] = rows if one.dim() == 1 else rows.reshape(-1, *[1] * (one.dim() - 1))

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.rows


@pytest.mark.parametrize("name", ["sd35_medium", "flux1_dev", "flux1_schnell"])
def test_every_row_comes_back_in_its_place(name):
    """Query, key and value are joined, shift and scale change places; a row in another place would be a wrong model."""
    pipe = skeleton(read_layout(name), {"default": torch.float16})
    names = family_of(type(pipe).__name__).single_file_names(pipe)
    assert {"transformer", "vae", "text_encoder", "text_encoder_2"} <= names.keys()
    for part, naming in names.items():
        shaped = Shaped(getattr(pipe, part))
        tensors = naming.tensors(shaped)
        assert all(key.startswith(naming.prefix) for key in tensors)
        found, wanted = naming.read_back(tensors, shaped), own_names(shaped.rows)
        assert found.keys() == wanted.keys(), part
        assert [key for key in wanted if not torch.equal(found[key].flatten(), wanted[key].flatten())] == [], part
