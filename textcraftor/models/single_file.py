"""Single-file checkpoints: the pipeline that one is for, and the settings and tokenizers that no file holds."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError, fetch_diffusers_config
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTokenizer

from textcraftor.assets import folder_or_id, loading
from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import read_json
from textcraftor.models.layout import read_layout
from textcraftor.models.model import families
from textcraftor.models.other_files import NEVER_WHOLE, Stored, kind_of_other, unsuited

MERGES = Path(__file__).with_name("clip_tokenizer") / "merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"
INDEX = DiffusionPipeline.config_name
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that tuning has no use for
LACKING = "settings and tokenizers that a single file does not hold come from model.config=, a folder, or by fetch"
# What SDXL checkpoints such as NoobAI's say by empty tensors of these names, as ComfyUI reads them.
V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"


def load_single_file(file: Path, dtype: torch.dtype, config: str | None = None) -> DiffusionPipeline:
    """The pipeline of a `.safetensors` checkpoint, without any network for Stable Diffusion 1.x, 2.1 and SDXL.

    Args:
        config: a folder or hub id in diffusers' layout for what the file does not hold; null for what is published.

    Raises:
        UsageError: it is no checkpoint of a family that is known.
    """
    tensors = tensors_of(file)
    class_name, layout = kind_of(file, tensors)
    kind: Any = getattr(diffusers, class_name)
    with ExitStack() as stack:
        settings: dict[str, Any] = {}
        if config is not None:
            settings = {"config": checked_settings(config, class_name, file)}
        elif layout is not None:
            folder = stack.enter_context(settings_folder(layout, tensors))
            settings = {"config": str(folder), "local_files_only": True}
        stack.enter_context(loading(str(file), "model.path", f"a {class_name}; {LACKING}"))
        try:
            pipeline = kind.from_single_file(str(file), dtype=dtype, **settings)
        except SingleFileComponentError as error:
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"model.path={file}: {reason} Take a whole checkpoint") from error
        except NotImplementedError as error:  # of tensors that no weight was read for
            raise UsageError(f"model.path={file} lacks tensors of the pipeline: take a whole checkpoint") from error
        except ValueError as error:
            raise misfit(file, class_name, error) from error
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and (key := next((k for k, t in part.state_dict().items() if t.is_meta), None)):
            raise UsageError(f"model.path={file} lacks {name}'s {key}: take a whole checkpoint")
    return pipeline


def tensors_of(file: Path) -> dict[str, Stored]:
    """A checkpoint's tensors by name; none of them is read."""
    if file.suffix.lower() != ".safetensors":
        raise UsageError(f"model.path={file} is not a .safetensors file: convert it, pickles can run code")
    try:
        with safe_open(file, "pt") as stored:
            slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
            return {name: Stored(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"model.path={file} is no whole safetensors file ({one_line(error)}): copy it again"
        ) from error


def kind_of(file: Path, tensors: Mapping[str, Stored]) -> tuple[str, str | None]:
    """The pipeline and the published layout of a checkpoint with these tensors.

    Raises:
        UsageError: it is something else, and what.
    """
    kinds = {key: kind for family in families() for key, kind in family.single_files.items()}
    known = next((kind for key, kind in kinds.items() if key in tensors), None)
    other = kind_of_other(tensors)
    if known is None or other in NEVER_WHOLE:
        what = other or "a checkpoint of no family that is known here"
        raise UsageError(
            f"model.path={file} is {what}: give a whole text-to-image checkpoint, a diffusers folder or a hub id"
        )
    if reason := unsuited(tensors):
        raise UsageError(f"model.path={file} {reason}")
    return known


def checked_settings(config: str, class_name: str, file: Path) -> str:
    """The folder or hub id that `model.config` names; a folder must hold all parts of a pipeline of this kind, for what
    it lacks diffusers would make up."""
    folder = Path(folder_or_id(config, "model.config"))
    if not folder.exists():
        return config
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if index.get("_class_name") != class_name:
        raise UsageError(
            f"model.config={config} is a folder of {index.get('_class_name', 'no pipeline')}, and model.path={file} a "
            f"file of {class_name}: give a folder of that"
        )
    parts = [name for name, value in index.items() if isinstance(value, list) and value[:1] != [None]]
    if missing := [name for name in parts if not name.startswith(UNUSED) and not (folder / name).is_dir()]:
        raise UsageError(f"model.config={config} lacks the folder {missing[0]}: copy it from the pipeline")
    return str(folder)


def misfit(file: Path, class_name: str, error: ValueError) -> UsageError | ValueError:
    """Our error where a tensor's shape is not the settings'; else the error itself."""
    shapes = re.search(r"because (\S+) expected shape torch.Size\((.+?)\), but got torch.Size\((.+?)\)", str(error))
    if shapes is None:
        return error
    key, wanted, given = shapes.groups()
    return UsageError(
        f"model.path={file} has {given} for the shape of {key}, and the settings of {class_name} say {wanted}: give "
        "those of this file, model.config="
    )


def marks(scheduler: SchedulerMixin) -> dict[str, Tensor]:
    """The empty tensors by which a single file says what its denoiser predicts, see `V_PREDICTION`."""
    config = scheduler.config
    flags = {
        V_PREDICTION: config.get("prediction_type") == "v_prediction",
        ZERO_SNR: config.get("rescale_betas_zero_snr", False),
    }
    return {name: torch.zeros(0) for name, is_set in flags.items() if is_set}


def settings_repository(file: Path) -> str | None:
    """The hub repository from which diffusers takes what a file does not hold; null where it comes with us."""
    tensors = tensors_of(file)
    if kind_of(file, tensors)[1] is not None:
        return None
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    return fetch_diffusers_config(shapes)["pretrained_model_name_or_path"]


@contextmanager
def settings_folder(name: str, names: Container[str]) -> Iterator[Path]:
    """A folder in diffusers' format with the settings of a layout, and CLIP's tokenizer, for as long as it is used."""
    layout = read_layout(name)
    scheduler = layout["scheduler"]
    if V_PREDICTION in names:
        scheduler["prediction_type"] = "v_prediction"
    if ZERO_SNR in names:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    index = {"_class_name": layout["_class_name"], "_diffusers_version": diffusers.__version__}
    with TemporaryDirectory(prefix="textcraftor-") as place:
        folder = Path(place)
        for part, config in layout.items():
            if part.startswith("tokenizer"):
                index[part] = ["transformers", config]
                clip_tokenizer(layout[part.replace("tokenizer", "text_encoder")]).save_pretrained(folder / part)
            elif isinstance(config, dict):
                library = "diffusers" if hasattr(diffusers, config["_class_name"]) else "transformers"
                index[part] = [library, config["_class_name"]]
                (folder / part).mkdir()
                settings = config | {"model_type": "clip_text_model"} if library == "transformers" else config
                file = "scheduler_config.json" if part == "scheduler" else "config.json"
                (folder / part / file).write_text(json.dumps(settings))
            elif part != "_class_name":
                index[part] = config
        (folder / "model_index.json").write_text(json.dumps(index))
        yield folder


def clip_tokenizer(text_encoder: dict[str, Any]) -> CLIPTokenizer:
    """OpenAI's tokenizer for CLIP, which every CLIP text encoder of these layouts reads; OpenCLIP's pad with `!`."""
    merges = [tuple(line.split()) for line in MERGES.read_text(encoding="utf-8").splitlines()[1:]]
    signs = [*byte_signs()]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END if text_encoder["hidden_act"] == "quick_gelu" else "!",
        model_max_length=text_encoder["max_position_embeddings"],
    )


def byte_signs() -> Iterator[str]:
    """The visible sign of every byte in the order of CLIP's vocabulary: the printable ones first, as they are."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    yield from map(chr, printable)
    yield from (chr(256 + number) for number in range(256 - len(printable)))
