"""Frozen text encoders that run once for each text, and may leave the device in between."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from textcraftor.errors import UsageError
from textcraftor.models.placing import Place, Together, temporary_file
from textcraftor.models.sharding import shard

KEPT = ("last_hidden_state", "pooler_output", "text_embeds")  # of an output, beside some hidden states
CAPACITY = 2e9  # bytes of outputs that are remembered; the longest unused are forgotten


class HiddenStates:
    """Some of an encoder's hidden states, by their index.

    Args:
        states: by index from the front.
        count: of all.
    """

    def __init__(self, states: dict[int, Tensor], count: int) -> None:
        self.states, self.count = states, count

    def __getitem__(self, index: int) -> Tensor:
        place = index % self.count
        if place not in self.states:
            raise UsageError(
                f"hidden state {index} of a frozen text encoder is not kept; there are {list(self.states)}"
            )
        return self.states[place]


@dataclass(frozen=True)
class Row:
    """One text's output.

    Args:
        kind: of transformers' outputs.
        fields, states: by name, and hidden states by index, each (1, ...).
        count: of all hidden states.
    """

    kind: type
    fields: dict[str, Tensor]
    states: dict[int, Tensor]
    count: int

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (*self.fields.values(), *self.states.values()))


class Remembered(nn.Module):
    """Stands for a frozen text encoder in a pipeline. Texts are known by their token ids, and encoded one at a time, so
    that what is remembered does not depend on the batch.

    Args:
        encoder: none of its weights learns.
        layers: the hidden states that are asked for.
        device: where outputs are wanted.
    """

    def __init__(self, encoder: nn.Module, layers: Sequence[int], device: torch.device) -> None:
        super().__init__()
        self._held = (encoder,)  # no part of this: it keeps its own place and its names
        self.layers, self.device = tuple(layers), device
        self.place: Place = "resident"
        self._together = Together()
        self._file: Path | None = None
        self._rows: OrderedDict[tuple, Row] = OrderedDict()
        self._bytes = 0

    @property
    def encoder(self) -> Any:
        return self._held[0]

    @property
    def config(self) -> Any:
        return self.encoder.config

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.dtype

    def put(self, place: Place, together: Together | None = None) -> None:
        """Let the encoder stay on the device, be there only while it works and else in memory or on disk, or lie in
        shares on all processes, for good."""
        self.place = place
        if place == "on_disk" and self._file is None:
            self._file = temporary_file(self)
            torch.save(self.encoder.state_dict(), self._file)
        if place == "sharded" and together is not None:
            self._together = together
            shard(self.encoder, self.device, (), together)
        elif place == "resident":
            self.encoder.to(self.device)
        else:
            self._leave()

    @property
    def _leaves(self) -> bool:
        return self.place in ("while_it_works", "on_disk")

    def _leave(self) -> None:
        """From disk, weights are mapped: read when they are needed, and no memory is lost if nobody does."""
        if self.place == "on_disk" and self._file is not None:
            weights = torch.load(self._file, map_location="cpu", mmap=True, weights_only=True)
            self.encoder.load_state_dict(weights, assign=True)
        self.encoder.to("cpu")

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        keys = [
            (tuple(ids.tolist()), None if attention_mask is None else tuple(attention_mask[row].tolist()))
            for row, ids in enumerate(input_ids)
        ]
        new = [row for row, key in enumerate(keys) if key not in self._rows and key not in keys[:row]]
        encoded = dict[tuple, Row]()
        try:
            if new and self._leaves:
                self.encoder.to(self.device)
            for row in new + self._again(len(new)):
                mask = {} if attention_mask is None else {"attention_mask": attention_mask[row : row + 1]}
                encoded[keys[row]] = self._kept(self.encoder(input_ids[row : row + 1], **mask, **options))
        finally:  # also where memory runs out, after which training goes on with smaller batches
            if new and self._leaves:
                self._leave()
        rows = [encoded[key] if key in encoded else self._rows[key] for key in keys]
        for key, known in zip(keys, rows, strict=True):
            self._remember(key, known)
        return self._joined(rows)

    def _again(self, count: int) -> list[int]:
        """The first text, as often as this process has fewer new ones than another: all call alike."""
        return [0] * (self._together.most(count) - count)

    def _kept(self, output: Any) -> Row:
        """What of one text's output anybody asks for, on the CPU."""
        fields = {name: output[name].cpu() for name in KEPT if output.get(name) is not None}
        states = output.get("hidden_states") or ()
        chosen = {index % len(states): states[index].cpu() for index in self.layers} if states else {}
        return Row(type(output), fields, chosen, len(states))

    def _remember(self, key: tuple, row: Row) -> None:
        if key not in self._rows:
            self._bytes += row.nbytes
        self._rows[key] = row
        self._rows.move_to_end(key)
        while self._bytes > CAPACITY and len(self._rows) > 1:
            self._bytes -= self._rows.popitem(last=False)[1].nbytes

    def _joined(self, rows: Sequence[Row]) -> Any:
        """Several texts' outputs as one of the encoder's own kind."""
        first = rows[0]
        joined: dict[str, Any] = {
            name: torch.cat([row.fields[name] for row in rows]).to(self.device) for name in first.fields
        }
        if first.count:
            states = {i: torch.cat([row.states[i] for row in rows]).to(self.device) for i in first.states}
            joined["hidden_states"] = HiddenStates(states, first.count)
        return first.kind(**joined)
