"""Tuned parts from run folders, added to a model. They may come from strangers: safetensors and JSON alone are read,
names and shapes are compared with the model's own in the files' headers before a tensor is, weights must be numbers
that can be meant, and nothing is built from what the folder says."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils.peft_utils import scale_lora_layers
from peft import LoraConfig
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from textcraftor.errors import UsageError, one_line
from textcraftor.files.reading import MB, check_confined, check_file, read_json
from textcraftor.files.writing import write_json
from textcraftor.models.lora_file import check_names, check_parts, layer_alphas, tensor_names
from textcraftor.models.model import ORIGINAL, Model
from textcraftor.models.published_names import PREFIX, published, weights_of
from textcraftor.models.saving import LORA_FILE, PEFT_FILE, plain_state, sharing, stock_names

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DENOISERS = ("unet", "transformer")
COMPONENTS = (*TEXT_ENCODERS, *DENOISERS)  # diffusers' names of whatever can be tuned
ADAPTER_CONFIG = "adapter_config.json"
# What of peft's settings says how adapters are read; others name classes to import.
ADAPTER_SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "use_rslora",
)
MOST_WEIGHTS = 256 * 1024 * MB  # of one file
LARGEST = 65504.0  # of a weight: the largest number that float16 holds
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
STEMS = dict.fromkeys(TEXT_ENCODERS, "model") | dict.fromkeys(DENOISERS, "diffusion_pytorch_model")


def tuned_folders(run: Path, components: Sequence[str] = COMPONENTS) -> list[Path]:
    """The folders of what a run tuned."""
    paths = [path for part in components for path in (run / part, run / f"{part}_lora")]
    return [path for path in paths if path.is_dir()]


def save_parts(model: Model, learners: Sequence[Learner], runs: Iterable[str], folder: Path) -> None:
    """Write all that pictures need: what learned here, and the other parts of the runs that it began from."""
    learned = {learner.component for learner in learners}
    for run in runs:
        for path in tuned_folders(Path(run).expanduser()):
            if component_of(path) not in learned:
                copy_part(model, path, folder)
    for learner in learners:
        learner.save(folder)


def component_of(folder: Path) -> str:
    """diffusers' name of the component that a folder of a run holds, whole or as adapters."""
    return folder.name.removesuffix("_lora")


def check_adapters(folder: Path, components: Sequence[str]) -> None:
    """Refuse adapters that would not be applied in full, from the names in the files' headers.

    Args:
        folder: a run, a folder of adapters, or a LoRA's file.
        components: diffusers' names of the networks that what is there may be for.
    """
    for path in tuned_folders(folder, components) or [folder]:
        file = next((file for file in lora_places(path) if file.is_file()), None)
        if file is not None:
            part = component_of(path) if component_of(path) in components else components[0]
            check_names(file, tensor_names(check_file(file, MOST_WEIGHTS)), part)


def load_text_encoders(model: Model, run: Path, name: str, strength: float = 1.0) -> None:
    """Add a run's text encoders, whole or as adapters, to a model under a name, frozen, in float32.

    Raises:
        UsageError: nothing there, keys missing, encoders of another shape than the model's own, or parts that it lacks.
    """
    originals, encoders = model.encoders(ORIGINAL), dict[str, nn.Module]()
    folders = tuned_folders(run, TEXT_ENCODERS)
    if not folders:
        raise UsageError(f"{run} holds no text_encoder and no text_encoder_lora: give the folder of a finished run")
    for folder in folders:
        part = component_of(folder)
        if part not in originals:
            raise UsageError(f"{run} tuned a {part}, which this model does not have: another base model?")
        original = encoders.get(part, originals[part])
        if folder.name == part:
            encoder: Any = copy.deepcopy(original).float()
            own = {published(key, encoder): key for key in weights_of(encoder)}
            wanted = {key: encoder.state_dict()[own[key]] for key in own}
            words = encoder.get_input_embeddings().weight
            names = [published(key, encoder) for key, one in encoder.named_parameters() if one is words]
            stored = read_like(wanted, folder, STEMS[part], dict.fromkeys(names, len(new_words(model)[part])))
            encoder.load_state_dict({own[key]: value for key, value in stored.items()}, strict=False)
        else:
            encoder = sharing(original)
            add_adapters(encoder, model, folder, part, name)
            scale_lora_layers(encoder, strength)
        encoders[part] = encoder.to(model.device).eval().requires_grad_(False)
    model.add_reader(name, encoders)


def new_words(model: Model) -> dict[str, Tensor]:
    """By text encoder, the last rows of its word embeddings, of words that were added to its tokenizer, as textual
    inversion does (Gal et al. 2022): (words, width)."""
    rows = {}
    originals: dict[str, Any] = model.encoders(ORIGINAL)
    for part, encoder in originals.items():
        words = encoder.get_input_embeddings().weight
        tokenizer = getattr(model.pipeline, part.replace("text_encoder", "tokenizer"))
        added = {*tokenizer.get_added_vocab().values()} - {*tokenizer.all_special_ids}
        count = next(n for n in range(len(words) + 1) if len(words) - 1 - n not in added)
        rows[part] = words[len(words) - count :].detach().clone()
    return rows


def copy_part(model: Model, path: Path, folder: Path) -> None:
    """Write what a folder of a run holds into another: known tensors, and of settings the model's own.

    Args:
        path: `text_encoder`, `unet_lora` or the like, of a run.
    """
    part = component_of(path)
    place = folder / path.name
    place.mkdir(parents=True)
    if path.name != part:
        file = check_file(lora_file(path), MOST_WEIGHTS)
        if file.name == PEFT_FILE:
            shutil.copyfile(file, place / file.name)
            settings = read_json(file.with_name(ADAPTER_CONFIG))
            write_json(place / ADAPTER_CONFIG, {name: settings[name] for name in ADAPTER_SETTINGS if name in settings})
        else:
            copy_adapters(file, place, part)
        return
    if part == model.family.denoiser:
        model.denoiser.save_config(place)
        state = read_like(model.denoiser.state_dict(), path, STEMS[part])
    else:
        original: Any = model.encoders(ORIGINAL)[part]
        original.config.save_pretrained(place)
        own = original.state_dict()
        state = read_like({published(key, original): own[key] for key in weights_of(original)}, path, STEMS[part])
    save_file(state, place / f"{STEMS[part]}.safetensors", metadata={"format": "pt"})


def copy_adapters(file: Path, place: Path, component: str) -> None:
    """Copy a file of adapters, with names by which the stock loader knows all of them."""
    names = tensor_names(file)
    check_names(file, names, component)
    if list(stock_names(dict.fromkeys(names, torch.empty(0)), component)) == names:
        shutil.copyfile(file, place / LORA_FILE)
        return
    with safe_open(file, "pt") as stored:
        state = {name: stored.get_tensor(name) for name in names}
        save_file(stock_names(state, component), place / LORA_FILE, metadata=stored.metadata())


def load_denoiser(model: Model, folder: Path, strength: float = 1.0) -> None:
    """Put a tuned denoiser's weights in the place of the model's own, or fuse adapters into them.

    Args:
        folder: a run or a pipeline with `unet/` or `transformer/`, or their `_lora/`, or such a folder itself, or a
            LoRA's file.
        strength: of adapters.

    Raises:
        UsageError: there is no denoiser, or one of another shape than the model's own.
    """
    component, denoiser = model.family.denoiser, model.denoiser
    if folder.is_dir():
        check_confined(folder)
    for path in tuned_folders(folder, [component]) or [folder]:
        if path.is_dir() and list(path.glob(f"{STEMS[component]}*.safetensors")):
            denoiser.load_state_dict(read_like(denoiser.state_dict(), path, STEMS[component]))
        else:
            add_adapters(denoiser, model, path, component, "tuned")
            denoiser.fuse_lora(lora_scale=strength)
            denoiser.unload_lora()
    denoiser.eval().requires_grad_(False)
    model.tuned_denoiser = True


def read_like(
    wanted: dict[str, Tensor], folder: Path, stem: str, added: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, in float32, under the names and in the shapes of those wanted. Of
    tensors that share weights, as a T5's embeddings do, files hold one.

    Args:
        added: by name, how many last rows files may lack; those keep the wanted values.

    Raises:
        UsageError: no file, a damaged one, a tensor that is missing, or one of another shape.
    """
    files = sorted(folder.glob(f"{stem}.safetensors")) or sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        raise UsageError(f"{folder} holds no {stem}.safetensors: give the folder of a finished run")
    by_name: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(check_file(file, MOST_WEIGHTS), "pt") as stored:
                names = {PREFIX + key if PREFIX + key in wanted else key: key for key in stored.keys()}  # noqa: SIM118
                for name in names.keys() & wanted.keys():
                    shape = tuple(stored.get_slice(names[name]).get_shape())
                    own = tuple(wanted[name].shape)
                    lacking = own[0] - shape[0] if shape and shape[1:] == own[1:] else 0
                    if shape != own and not 0 < lacking <= (added or {}).get(name, 0):
                        raise UsageError(
                            f"{file}: {name} has the shape {shape} but the model's own {own}: "
                            "this was tuned for another base model"
                        )
                tensors = {name: stored.get_tensor(names[name]) for name in names.keys() & wanted.keys()}
                tensors = {name: checked(file, name, tensor).float() for name, tensor in tensors.items()}
                by_name |= {name: _filled(tensor, wanted[name]) for name, tensor in tensors.items()}
        except SafetensorError as error:
            raise UsageError(f"{file} is no whole safetensors file ({error}): copy it again") from error
    places = {wanted[name].data_ptr() for name in by_name}
    missing = [name for name, tensor in wanted.items() if name not in by_name and tensor.data_ptr() not in places]
    if missing:
        raise UsageError(f"{folder}: key {missing[0]} is missing; this was tuned for another base model, or is damaged")
    return by_name


def _filled(tensor: Tensor, own: Tensor) -> Tensor:
    """A tensor with the last rows of the model's own, where it has fewer."""
    return tensor if tensor.shape == own.shape else torch.cat([tensor, own[len(tensor) :].float().cpu()])


def checked(file: Path, name: str, tensor: Tensor) -> Tensor:
    """A tensor of weights that can be meant.

    Raises:
        UsageError: another type than a floating-point one, a number that is not finite, or one that is too large.
    """
    if tensor.dtype not in DTYPES:
        raise UsageError(f"{file}: {name} has the type {tensor.dtype}; weights must be floating-point numbers")
    largest = tensor.abs().max().item() if tensor.numel() else 0.0
    if not largest <= LARGEST:
        raise UsageError(f"{file}: {name} has a weight of {largest:g}; weights must be finite and at most {LARGEST:g}")
    return tensor


def add_adapters(module: Any, model: Model, path: Path, component: str, name: str, others: Sequence[str] = ()) -> None:
    """Add LoRA weights, in any layout that diffusers reads or in peft's, to one of a model's networks.

    Args:
        others: parts for which the file may hold adapters too, which are left to whoever reads it for them.

    Raises:
        UsageError: no such file, adapters that do not fit, or none for this part.
    """
    file = check_file(lora_file(path), MOST_WEIGHTS)
    if file.stat().st_size > sum(parameter.nbytes for parameter in module.parameters()):
        raise UsageError(f"{file} is larger than the network that it adapts: another base model?")
    stored, alphas = fitted(module, *read_lora(file, component, model, others))
    for key in stored:
        checked(file, key, stored[key])
        twin = key.replace(".lora_A.", ".lora_B.") if ".lora_A." in key else key.replace(".lora_B.", ".lora_A.")
        if twin not in stored:
            raise UsageError(f"{file}: {key} has no {twin.rpartition('.lora_')[2]} beside it: copy the file again")
    if wrong := next((layer for layer, alpha in alphas.items() if not abs(alpha) <= LARGEST), None):
        raise UsageError(
            f"{file}: the alpha of {wrong} is {alphas[wrong]:g}; it must be finite and at most {LARGEST:g}"
        )
    ranks, known = ranks_of(stored), {layer for layer, _ in module.named_modules()}
    if strangers := [layer for layer in ranks if layer not in known]:
        raise UsageError(
            f"{file}: {len(strangers)} of {len(ranks)} adapters do not fit this model, {strangers[0]} among them: "
            "another base model?"
        )
    config = LoraConfig(
        r=next(iter(ranks.values())),
        lora_alpha=1,
        target_modules="|".join(map(re.escape, ranks)),
        rank_pattern={f"^{re.escape(layer)}": rank for layer, rank in ranks.items()},
        alpha_pattern={f"^{re.escape(layer)}": alphas.get(layer, rank) for layer, rank in ranks.items()},
    )
    try:
        module.add_adapter(config, adapter_name=name)
        result: Any = set_peft_model_state_dict(module, stored, adapter_name=name)
    except (ValueError, RuntimeError, KeyError) as error:
        raise UsageError(f"{file}: its adapters do not fit this model ({str(error).splitlines()[0]})") from error
    if left := result.unexpected_keys:
        raise UsageError(f"{file}: {left[0]} does not fit this model: another base model?")


def fitted(
    module: nn.Module, state: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Adapters and alphas under the names that the network itself has for its layers."""
    known = {layer for layer, _ in module.named_modules()}
    named = {key if key.rpartition(".lora_")[0] in known else key.removeprefix(PREFIX): state[key] for key in state}
    return named, {key if key in known else key.removeprefix(PREFIX): alpha for key, alpha in alphas.items()}


def lora_places(path: Path) -> list[Path]:
    """Where a folder's adapters may be; a file is its own place."""
    files = [path / LORA_FILE, path / PEFT_FILE] if path.is_dir() else [path]
    return [file for file in files if file.suffix == ".safetensors"]


def lora_file(path: Path) -> Path:
    """The file of adapters in a folder, or that file itself."""
    file = next((file for file in lora_places(path) if file.is_file()), None)
    if file is None:
        raise UsageError(f"{path} holds no {LORA_FILE}: give the folder of a finished run")
    return file


def downs_of(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the first of each adapter's two matrices."""
    return [key for key in state if ".lora_A." in key]


def read_lora(
    file: Path, component: str, model: Model, others: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The adapters of one network in a LoRA's file under peft's names, and each layer's alpha where the file says it.

    Of a file's settings those that say the alphas are used: ranks and layers are those of the tensors.

    Args:
        others: parts for which the file may hold adapters too.

    Raises:
        UsageError: nothing that diffusers or peft can read, no adapters for this part, or anything beside them.
    """
    names, parts = tensor_names(file), (component, *others)
    if not others:
        check_names(file, names, component)
    if file.name == PEFT_FILE:
        return _read_peft(file)
    reads = type(model.pipeline).lora_state_dict
    try:
        state, *about = reads(
            file.parent,
            weight_name=file.name,
            return_lora_metadata=True,
            use_safetensors=True,
            unet_config=model.denoiser.config,
        )
    except (SafetensorError, ValueError, OSError, KeyError, RecursionError) as error:
        raise UsageError(f"{file} holds no LoRA that diffusers can read ({one_line(error)})") from error
    metadata, start = about[-1], f"{component}."
    given = (about[0] if len(about) > 1 else None) or {key: one for key, one in state.items() if key.endswith(".alpha")}
    check_parts(file, names, [*state, *given], model.family.kohya, parts)
    state = _renamed(file, {key: one for key, one in state.items() if key.startswith(start)}, start)
    if not downs_of(state):
        raise UsageError(f"{file} holds no adapters for a {component}")
    ranks = ranks_of(state)
    alphas = {
        f"{peft_name(key.removesuffix('alpha')).split('.lora_')[0].rstrip('.')}"[len(start) :]: float(alpha)
        for key, alpha in given.items()
        if key.startswith(start)
    }
    if stray := next((layer for layer in alphas if layer not in ranks), None):
        raise UsageError(f"{file}: {stray} has an alpha and no matrices: copy the file again")
    if metadata and not alphas:
        settings = {key.removeprefix(start): one for key, one in metadata.items() if key.startswith(start)}
        alphas = layer_alphas(f"{file}: the settings of the {component}", settings, ranks)
    return state, alphas


def _renamed(file: Path, state: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """Matrices under peft's names, without the part's prefix."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = peft_name(key)[len(start) :]
        if name in renamed:
            raise UsageError(f"{file}: {key} is in the file twice, under names of two kinds: leave one of them")
        if ".lora_" in name:
            renamed[name] = tensor
    return renamed


def _read_peft(file: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The same of a folder in peft's layout."""
    place = file.with_name(ADAPTER_CONFIG)
    try:
        with safe_open(file, "pt") as stored:
            state = {key.removeprefix("base_model.model."): stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UsageError(f"{file} is no whole safetensors file ({error}): copy it again") from error
    return state, layer_alphas(place, read_json(place), ranks_of(state))


def ranks_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """The rank of each layer's adapter, by the layer's name."""
    return {key.rpartition(".lora_")[0]: len(state[key]) for key in downs_of(state)}


def peft_name(key: str) -> str:
    """A tensor of adapters, under any of the names that diffusers gives it, under peft's.

    diffusers does the same for a whole file at once, and takes a file whose layers have names of two kinds, as kohya's
    of a text encoder's attention and of its other layers do, for one of a single kind.
    """
    key = re.sub(r"\.self_attn\.to_(q|k|v|out)_lora\.", r".self_attn.\1_proj.lora.", key)
    key = re.sub(r"\.processor\.to_(q|k|v)_lora\.", r".to_\1.lora.", key)
    key = key.replace(".processor.to_out_lora.", ".to_out.0.lora.")
    key = re.sub(r"\.lora(_linear_layer)?\.down\.", ".lora_A.", key)
    return re.sub(r"\.lora(_linear_layer)?\.up\.", ".lora_B.", key)


@torch.no_grad()
def merge_text_encoders(model: Model, weights: Mapping[str, float], name: str) -> None:
    """Encoders whose weights are the weighted sums of others', adapters included: no extra cost when they encode."""
    merged = dict[str, nn.Module]()
    for part, original in model.encoders(ORIGINAL).items():
        encoders = {reader: model.encoders(reader)[part] for reader in weights}
        if len({id(encoder) for encoder in encoders.values()}) == 1:
            continue
        total: dict[str, Tensor] = {}
        for reader, weight in weights.items():
            for key, value in plain_state(encoders[reader]).items():
                total[key] = total.get(key, 0) + weight * value.double()
        merged[part] = copy.deepcopy(original).float()
        merged[part].load_state_dict({key: value.float() for key, value in total.items()})
        merged[part].eval().requires_grad_(False)
    model.add_reader(name, merged)
