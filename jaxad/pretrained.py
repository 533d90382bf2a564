"""Weights of the backbones: torchvision-named files in, Flax trees out, and back.

The module trees of `jaxad.models` carry torchvision's names with '_' for '.', so the mapping is mechanical:
layer1_0/downsample_1/scale is layer1.0.downsample.1.weight. Convolution kernels are transposed, BatchNorm's averages
are `batch_stats`. Nothing is ever unpickled, and weights are random only where 'random' is asked for by name.

`weights="imagenet"` is the file that third_party/weights.json names: looked for in the folder JAXAD_WEIGHTS, then in
JAXAD_CACHE/weights (JAXAD_CACHE is ~/.cache/jaxad if not set), then fetched from the Hugging Face hub with its own
library, so that HF_ENDPOINT, HF_HUB_OFFLINE and what is already in that library's cache are honoured.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jaxad.models import backbones
from jaxad.types import Tree, UserError

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt")
FLAG = "--config.backbone.weights"
BACKBONE = "backbone.safetensors"  # what a pre-training run leaves in WORKDIR/CATEGORY

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_BODY = re.compile(r"(conv1|bn1|layer\d+|features)\.")  # names of the part that jaxad builds; fc and classifier are not


def load(name: str, weights: str | os.PathLike, stages: Sequence[str], *, seed: int = 0) -> dict[str, Tree]:
    """{'params': tree, 'batch_stats': tree} of NumPy f32 arrays for `backbones.build(name, stages)`.

    weights: 'imagenet', 'random' (He-normal, drawn from `seed`; a layer is the same whatever `stages`), the workdir of
    a run that pre-trained a backbone, or a file with torchvision's names: .safetensors, .npz, or .pth, which needs
    PyTorch. Every name and shape that `stages` need is checked; deeper stages and the classifier may be there or not.
    Raises UserError, one line with the way out.

    >>> variables = load("resnet18", "random", ["layer1"])
    >>> variables["params"]["layer1_0"]["conv1"]["kernel"].shape
    (3, 3, 64, 64)
    """
    expected = _expected(name, tuple(stages))
    if weights == "random":
        return _random(expected, seed)
    path = _imagenet(name) if weights == "imagenet" else _file(weights)
    shapes, arrays = _read(path, [torch_name for torch_name, _ in expected.values()])
    _check(path, name, stages, expected, shapes)
    flat = {}
    for key, (torch_name, _) in expected.items():
        array = np.asarray(arrays[torch_name], np.float32)
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {torch_name!r} holds NaN or infinite values; fetch the file again")
        flat[key] = np.ascontiguousarray(array.transpose(2, 3, 1, 0) if array.ndim == 4 else array)
    return _tree(flat)


def save(path: str | os.PathLike, variables: dict[str, Tree], name: str) -> None:
    """Writes {'params', 'batch_stats'} of backbone `name`, whole or up to a stage, as torchvision-named safetensors.

    PyTorch's `load_state_dict` and `load` above read it. The file appears complete or not at all.
    Raises ValueError where a leaf is not one of the backbone's.
    """
    from safetensors.numpy import save as serialise

    path, expected = Path(path), _expected(name, backbones.stages(name))
    tensors = {}
    for key, leaf in flax.traverse_util.flatten_dict(dict(variables)).items():
        array = np.asarray(leaf, np.float32)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        if key not in expected or expected[key][1] != array.shape:
            raise ValueError(f"save: {'/'.join(key)} {array.shape} is no leaf of {name}")
        tensors[expected[key][0]] = np.ascontiguousarray(array)
    _write(path, serialise(tensors, {"format": "pt", "architecture": name}))


@functools.cache
def _expected(name: str, stages: tuple[str, ...]) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
    """{(collection, *module path, leaf): (torchvision's name, PyTorch's shape)} of all that `stages` need."""
    module = backbones.build(name, stages)
    tree = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    expected = {}
    for key, leaf in flax.traverse_util.flatten_dict(dict(tree)).items():
        torch_name = ".".join(key[1:-1]).replace("_", ".") + "." + _LEAVES[key[-1]]
        expected[key] = torch_name, tuple(leaf.shape[i] for i in (3, 2, 0, 1)) if len(leaf.shape) == 4 else leaf.shape
    return expected


def _tree(flat: dict[tuple[str, ...], np.ndarray]) -> dict[str, Tree]:
    return {"params": {}, "batch_stats": {}, **flax.traverse_util.unflatten_dict(flat)}


def _random(expected, seed: int) -> dict[str, Tree]:
    """torchvision's own initialisation: He-normal over the fan-out for convolutions, the identity for BatchNorm."""
    flat = {}
    for key, (torch_name, shape) in expected.items():
        if len(shape) == 4:
            rng = np.random.default_rng([seed, zlib.crc32(torch_name.encode())])
            out, inn, height, width = shape
            draw = rng.standard_normal((height, width, inn, out), np.float32)
            flat[key] = draw * np.float32(np.sqrt(2 / (out * height * width)))
        else:
            flat[key] = np.full(shape, float(key[-1] in ("scale", "var")), np.float32)
    return _tree(flat)


def _file(weights: str | os.PathLike) -> Path:
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _of_run(path)
    near = difflib.get_close_matches(str(weights), ("imagenet", "random"), 1)
    if near:
        raise UserError(f"{FLAG}={weights}: did you mean {near[0]!r}?")
    formats = " ".join(SUFFIXES)
    raise UserError(f"{FLAG}={weights} is no file; give 'imagenet', 'random', a file ({formats}) or a pre-training run")


def _of_run(workdir: Path) -> Path:
    """The backbone that a run has left, see `jaxad.report.pretraining`."""
    found = sorted(workdir.glob(f"*/{BACKBONE}"))
    if not found:
        raise UserError(
            f"{FLAG}={workdir} is a folder without CATEGORY/{BACKBONE}; give a file, or the workdir of a finished "
            f"pre-training run (--config=configs/spd.py)"
        )
    if len(found) > 1:
        raise UserError(f"{FLAG}={workdir} holds {len(found)} backbones; give one of the files, such as {found[0]}")
    return found[0]


def _read(path: Path, wanted: Iterable[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    """The shapes of all tensors in a file, and the `wanted` tensors that are there."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights are read from {' '.join(SUFFIXES)} files, not {path.suffix or 'this'}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                return shapes, {name: file.get_tensor(name) for name in wanted if name in shapes}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        else:
            arrays = _read_torch(path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # each format has its own errors for a truncated or foreign file
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} is not a readable {path.suffix} file: {reason}; check it, or fetch it again"
        ) from error
    return {name: array.shape for name, array in arrays.items()}, arrays


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: reading {path.suffix} needs PyTorch; install jaxad[parity], or convert the file once with "
            "safetensors.torch.save_file where PyTorch is installed"
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise UserError(f"{path}: no tensors at its top level, but {list(state)[:4]}; save the state_dict itself")
    return {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}


def _check(path: Path, name: str, stages: Sequence[str], expected, shapes: dict[str, tuple[int, ...]]) -> None:
    """All that is needed is there, in its shape, and nothing foreign: resnet34 has every name of resnet18, and more."""
    whole = dict(_expected(name, backbones.stages(name)).values())
    missing = next((n for n, _ in sorted(expected.values()) if n not in shapes), None)
    wrong = next((n for n, shape in sorted(expected.values()) if shapes.get(n, shape) != shape), None)
    foreign = next((n for n in sorted(shapes) if _BODY.match(n) and n not in whole and not _counter(n)), None)
    if wrong:
        fault = f"{wrong!r} has shape {list(shapes[wrong])}, {name} needs {list(whole[wrong])}"
    elif missing:
        fault = f"no {missing!r} {list(whole[missing])}, which {name} needs for {', '.join(stages)}"
    elif foreign:
        fault = f"it holds {foreign!r}, which {name} has not"
    else:
        return
    raise UserError(f"{path}: {fault}; {_guess(name, shapes)}")


def _guess(name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """What the file seems to be, and what to do about it."""
    body = {n: shape for n, shape in shapes.items() if _BODY.match(n) and not _counter(n)}
    for candidate in backbones.NAMES:
        whole = dict(_expected(candidate, backbones.stages(candidate)).values())
        if not body or not all(whole.get(n) == shape for n, shape in body.items()):
            continue
        held = [
            s for s in backbones.stages(candidate) if dict(_expected(candidate, (s,)).values()).keys() <= body.keys()
        ]
        reach = f"{candidate} up to {held[-1]}" if held else f"a part of {candidate}"
        if candidate != name:
            return f"it looks like {reach}: set --config.backbone.name={candidate}, or give weights of {name}"
        return f"it looks like {reach}: use stages up to there, or give a file with the whole network"
    first = ", ".join(sorted(shapes)[:3])
    return f"it looks like no backbone of jaxad (it begins {first or 'empty'}); give {name} under torchvision's names"


def _counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def manifest() -> dict[str, dict]:
    """{backbone: its entry in third_party/weights.json}: file, repo, address, sha256, origin, licence, citation."""
    places = (Path(__file__).parents[1] / "third_party", Path(sys.prefix) / "share" / "jaxad")
    for folder in places:
        if (folder / "weights.json").is_file():
            return json.loads((folder / "weights.json").read_text())["weights"]
    raise UserError(f"third_party/weights.json is not installed; give the weights as a file: {FLAG}=FILE")


def _imagenet(name: str) -> Path:
    entry = manifest()[name]
    given = os.environ.get("JAXAD_WEIGHTS", "")
    if given and not Path(given).is_dir():
        raise UserError(f"JAXAD_WEIGHTS={given} is not a folder; name the one that holds {entry['file']}")
    cache = Path(os.environ.get("JAXAD_CACHE") or "~/.cache/jaxad").expanduser() / "weights"
    for folder in (Path(given), cache) if given else (cache,):
        path = folder / entry["file"]
        if path.is_file():
            _verify(path, entry)
            return path
    return _download(name, entry, cache / entry["file"])


def _download(name: str, entry: dict, path: Path) -> Path:
    """Fetches one file of the manifest into the cache, checked before it appears there."""
    reason = ""
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants

        try:  # one quick try: without a network the library's own retries take 23 s to say so
            hub.get_session().head(constants.ENDPOINT, timeout=10)
        except Exception as error:
            reason = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
        offline = bool(reason)  # then only what is already in the library's cache
        options = dict(revision=entry["revision"], local_files_only=offline)
        fetched = Path(hub.hf_hub_download(entry["repo"], entry["remote_file"], **options))
    except Exception as error:  # no network, no such mirror, no library: all have the same way out
        reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UserError(
            f"no ImageNet weights for {name}: {reason}; fetch {entry['address']} where there is a network and pass it "
            f"as {FLAG}=FILE, or put it as {entry['file']} in a folder named by JAXAD_WEIGHTS"
        ) from error
    digest = _sha256(fetched)
    stated = entry["sha256"] or fetched.resolve().name  # the hub's library names large files by the hub's own sha256
    if re.fullmatch("[0-9a-f]{64}", stated) and digest != stated:
        raise UserError(f"{fetched}: sha256 is {digest}, not {stated}; delete it and run again")
    if entry["sha256"] is None:
        _write(_record(path), f"{digest}  {path.name}\n".encode())
    _write(path, fetched)
    return path


def _verify(path: Path, entry: dict) -> None:
    record = _record(path)
    stated = entry["sha256"] or (record.read_text().split()[0] if record.is_file() else None)
    if stated and _sha256(path) != stated:
        raise UserError(f"{path}: its sha256 is not {stated}; delete it and fetch {entry['address']} again")


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes | Path) -> None:
    """Bytes, or a copy of a file; complete or not at all, also if the disk is full or two processes write at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        if isinstance(content, Path):
            shutil.copyfile(content, temporary)
        else:
            temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
