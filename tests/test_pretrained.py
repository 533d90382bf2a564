"""Weights: the names of torchvision in and out, every mistake one line, the download up to the network."""

import functools
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from jaxad import pretrained
from jaxad.models import backbones
from jaxad.types import UserError

STAGES = ("layer1",)


@pytest.fixture(autouse=True)
def empty_house(tmp_path, monkeypatch):
    """No weights anywhere, and no way to the network."""
    monkeypatch.setenv("JAXAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("JAXAD_WEIGHTS", raising=False)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def tensors(name="resnet18", stages=STAGES, seed=0):
    """A torchvision-named state dict as NumPy arrays, every value different; written without the loader's tables."""
    rng = np.random.default_rng(seed)
    assert name in ("resnet18", "resnet34") and set(stages) <= {"layer1", "layer2"}
    state, blocks = {"conv1.weight": (64, 3, 7, 7), "bn1": 64}, {"resnet18": 2, "resnet34": 3}[name]
    for stage, (inn, out, count) in {"layer1": (64, 64, blocks), "layer2": (64, 128, blocks + blocks // 3)}.items():
        for number in range(count if stage in stages else 0):
            state[f"{stage}.{number}.conv1.weight"] = (out, inn if number == 0 else out, 3, 3)
            state[f"{stage}.{number}.conv2.weight"] = (out, out, 3, 3)
            state |= {f"{stage}.{number}.bn1": out, f"{stage}.{number}.bn2": out}
            if number == 0 and inn != out:
                state |= {f"{stage}.0.downsample.0.weight": (out, inn, 1, 1), f"{stage}.0.downsample.1": out}
    arrays = {}
    for key, shape in state.items():
        if isinstance(shape, int):
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                arrays[f"{key}.{leaf}"] = rng.random(shape, np.float32)
            arrays[f"{key}.num_batches_tracked"] = np.array(7)
        else:
            arrays[key] = rng.standard_normal(shape, np.float32)
    return arrays


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    elif path.suffix == ".pth":
        torch = pytest.importorskip("torch")
        torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_torchvision_names_become_the_modules_tree(tmp_path, suffix):
    arrays = tensors(stages=("layer1", "layer2"))
    arrays |= {"fc.weight": np.zeros((1000, 512), np.float32), "fc.bias": np.zeros(1000, np.float32)}
    variables = pretrained.load("resnet18", write(tmp_path / f"w{suffix}", arrays), ("layer1", "layer2"))
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["layer2_0"]["conv1"]["kernel"]
    assert kernel.shape == (3, 3, 64, 128) and kernel.dtype == np.float32
    assert kernel[0, 2, 5, 7] == arrays["layer2.0.conv1.weight"][7, 5, 0, 2]
    assert np.array_equal(params["layer1_1"]["bn2"]["scale"], arrays["layer1.1.bn2.weight"])
    assert np.array_equal(params["layer2_0"]["downsample_1"]["bias"], arrays["layer2.0.downsample.1.bias"])
    assert np.array_equal(stats["bn1"]["var"], arrays["bn1.running_var"])
    assert np.array_equal(stats["layer2_1"]["bn1"]["mean"], arrays["layer2.1.bn1.running_mean"])
    module = backbones.build("resnet18", ("layer1", "layer2"))
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_deeper_stages_in_the_file_are_left_out(tmp_path):
    path = write(tmp_path / "w.safetensors", tensors(stages=("layer1", "layer2")))
    assert "layer2_0" not in pretrained.load("resnet18", path, ("layer1",))["params"]
    assert set(pretrained.load("resnet18", path, ("stem",))["params"]) == {"conv1", "bn1"}


def test_half_precision_files_are_widened(tmp_path):
    arrays = {name: array.astype(np.float16) for name, array in tensors().items()}
    variables = pretrained.load("resnet18", write(tmp_path / "w.safetensors", arrays), STAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name,stages", [("resnet50", ("layer1",)), ("vgg16", ("relu2_2",))])
def test_save_then_load_is_the_identity(tmp_path, name, stages):
    variables = pretrained.load(name, "random", stages, seed=3)
    pretrained.save(tmp_path / "w.safetensors", variables, name)
    again = pretrained.load(name, tmp_path / "w.safetensors", stages)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_saved_files_carry_torchvisions_names_and_layout(tmp_path):
    from safetensors.numpy import load_file

    arrays = {name: array for name, array in tensors().items() if not name.endswith("tracked")}
    variables = pretrained.load("resnet18", write(tmp_path / "a.npz", arrays), STAGES)
    pretrained.save(tmp_path / "b.safetensors", variables, "resnet18")
    saved = load_file(tmp_path / "b.safetensors")
    assert saved.keys() == arrays.keys()
    assert all(np.array_equal(saved[name], arrays[name]) for name in arrays)


def test_saving_another_architectures_tree_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no leaf of resnet50"):
        pretrained.save(tmp_path / "w.safetensors", pretrained.load("resnet18", "random", STAGES), "resnet50")
    assert not os.listdir(tmp_path)


def test_random_weights_depend_on_the_seed_and_not_on_the_stages():
    one = pretrained.load("resnet18", "random", ("layer1",), seed=1)["params"]
    deeper = pretrained.load("resnet18", "random", ("layer1", "layer2"), seed=1)["params"]
    other = pretrained.load("resnet18", "random", ("layer1",), seed=2)["params"]
    kernel = one["layer1_0"]["conv1"]["kernel"]
    assert np.array_equal(kernel, deeper["layer1_0"]["conv1"]["kernel"])
    assert not np.array_equal(kernel, other["layer1_0"]["conv1"]["kernel"])
    assert not np.array_equal(kernel, one["layer1_1"]["conv1"]["kernel"])
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)  # He-normal over the fan-out
    assert np.all(one["bn1"]["scale"] == 1) and np.all(one["bn1"]["bias"] == 0)


def fails(match, name="resnet18", weights=None, stages=STAGES):
    with pytest.raises(UserError, match=match) as caught:
        pretrained.load(name, weights, stages)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_architecture_is_named(tmp_path):
    path18 = write(tmp_path / "r18.safetensors", tensors("resnet18"))
    path34 = write(tmp_path / "r34.safetensors", tensors("resnet34"))
    fails("shape.*it looks like resnet18 up to layer1.*backbone.name=resnet18", "resnet50", path18)
    fails("no 'layer1.2.bn1.bias'.*looks like resnet18", "resnet34", path18)
    # every name and shape that resnet18 needs is in a file of resnet34: the blocks too many give it away
    fails("holds 'layer1.2.*resnet18 has not; it looks like resnet34 up to layer1", "resnet18", path34)
    fails("no 'features.0.bias'.*looks like resnet18", "vgg16", path18, ("relu1_1",))


def test_a_stage_that_the_file_lacks_is_one_clear_line(tmp_path):
    path = write(tmp_path / "w.safetensors", tensors())
    fails(
        "no 'layer2.0.*needs for layer1, layer2; it looks like resnet18 up to layer1",
        "resnet18",
        path,
        ("layer1", "layer2"),
    )


def test_names_with_a_prefix_are_shown(tmp_path):
    path = write(tmp_path / "w.npz", {f"encoder.{name}": array for name, array in tensors().items()})
    fails("no 'bn1.bias'.*no backbone of jaxad .it begins encoder.bn1.bias", "resnet18", path)


def test_a_wrong_shape_names_both_shapes(tmp_path):
    arrays = tensors() | {"layer1.0.conv2.weight": np.zeros((64, 64, 1, 1), np.float32)}
    fails(
        r"layer1.0.conv2.weight' has shape \[64, 64, 1, 1\], resnet18 needs \[64, 64, 3, 3\]",
        weights=write(tmp_path / "w.npz", arrays),
    )


def test_non_finite_weights_are_refused(tmp_path):
    arrays = tensors()
    arrays["layer1.0.conv2.weight"][3, 2, 1, 0] = np.nan
    fails("layer1.0.conv2.weight' holds NaN", weights=write(tmp_path / "w.npz", arrays))


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_truncated_files_are_one_line(tmp_path, suffix):
    if suffix == ".pth":
        pytest.importorskip("torch")
    path = write(tmp_path / f"w{suffix}", tensors())
    path.write_bytes(path.read_bytes()[:5000])
    fails(f"w{suffix} is not a readable {suffix} file", weights=path)


def test_pickles_are_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"conv1.weight": functools.partial(os.system, "false")}, tmp_path / "w.pth")
    fails("not a readable .pth file", weights=tmp_path / "w.pth")
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "n.pth")
    fails("no tensors at its top level.*state_dict", weights=tmp_path / "n.pth")
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.array([print], object)})
    fails("not a readable .npz file", weights=tmp_path / "w.npz")


def test_pth_without_pytorch_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"any")
    monkeypatch.setitem(sys.modules, "torch", None)
    fails("needs PyTorch; install jaxad.parity., or convert", weights=tmp_path / "w.pth")


def test_words_and_paths_that_do_not_exist_are_refused(tmp_path):
    fails("did you mean 'imagenet'", weights="imagenets")
    fails("did you mean 'random'", weights="Random")
    fails("is no file; give 'imagenet', 'random', a file", weights=str(tmp_path / "nowhere.safetensors"))
    fails("is a folder without CATEGORY/backbone.safetensors", weights=str(tmp_path))
    (tmp_path / "w.bin").write_bytes(b"any")
    fails("read from .safetensors", weights=str(tmp_path / "w.bin"))


def test_a_runs_folder_stands_for_the_one_backbone_that_it_holds(tmp_path):
    for category in ("one", "two"):
        (tmp_path / category).mkdir()
        write(tmp_path / category / "backbone.safetensors", tensors())
        if category == "one":
            variables = pretrained.load("resnet18", tmp_path, STAGES)
            assert np.array_equal(variables["params"]["bn1"]["scale"], tensors()["bn1.weight"])
    fails("holds 2 backbones; give one of the files, such as .*one.backbone.safetensors", weights=str(tmp_path))


# ---- imagenet: the manifest, its folders, the download up to the network


def test_the_manifest_covers_every_backbone_and_agrees_with_itself():
    manifest = pretrained.manifest()
    assert tuple(manifest) == backbones.NAMES
    for name, entry in manifest.items():
        assert (
            entry["address"]
            == f"https://huggingface.co/{entry['repo']}/resolve/{entry['revision']}/{entry['remote_file']}"
        )
        assert entry["file"].startswith(name + ".") and entry["file"].endswith(".safetensors")
        assert entry["sha256"] is None or len(bytes.fromhex(entry["sha256"])) == 32
        assert entry["licence"] and entry["citation"]


def entry_for(monkeypatch, path, known=True):
    """The manifest's resnet18 with the checksum of `path`, or none."""
    entry = dict(
        pretrained.manifest()["resnet18"], sha256=hashlib.sha256(path.read_bytes()).hexdigest() if known else None
    )
    monkeypatch.setattr(pretrained, "manifest", lambda: {"resnet18": entry})
    return entry


def test_imagenet_without_file_and_network_says_which_file_and_which_flag():
    fails(
        "cannot be reached.*fetch https://huggingface.co/timm/resnet18.tv_in1k/resolve/main/model.safetensors .*"
        "--config.backbone.weights=FILE.*resnet18.tv_in1k.safetensors in a folder named by JAXAD_WEIGHTS",
        weights="imagenet",
    )


@pytest.mark.parametrize("variable", ["JAXAD_WEIGHTS", "JAXAD_CACHE"])
def test_imagenet_is_found_in_the_folders(tmp_path, monkeypatch, variable):
    folder = tmp_path / "mine" / ("weights" if variable == "JAXAD_CACHE" else "")
    folder.mkdir(parents=True)
    path = write(folder / "resnet18.tv_in1k.safetensors", tensors())
    entry_for(monkeypatch, path)
    monkeypatch.setenv(variable, str(tmp_path / "mine"))
    variables = pretrained.load("resnet18", "imagenet", STAGES)
    assert np.array_equal(variables["params"]["bn1"]["scale"], tensors()["bn1.weight"])
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    fails("its sha256 is not .*delete it and fetch https://huggingface.co", weights="imagenet")


def test_jaxad_weights_must_be_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXAD_WEIGHTS", str(tmp_path / "nowhere"))
    fails("JAXAD_WEIGHTS=.*is not a folder", weights="imagenet")


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """The hub's library, answering from a folder; the list holds its calls."""
    import huggingface_hub

    path, calls = write(tmp_path / "model.safetensors", tensors()), []

    def fetch(repo, file, *, revision, local_files_only):
        calls.append((repo, file, revision, local_files_only))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    return path, calls


def test_a_download_is_kept_and_not_repeated(tmp_path, monkeypatch, hub_folder):
    path, calls = hub_folder
    entry_for(monkeypatch, path)
    for _ in range(2):
        variables = pretrained.load("resnet18", "imagenet", STAGES)
        assert np.array_equal(variables["params"]["bn1"]["scale"], tensors()["bn1.weight"])
    assert calls == [("timm/resnet18.tv_in1k", "model.safetensors", "main", True)]
    assert os.listdir(tmp_path / "cache" / "weights") == ["resnet18.tv_in1k.safetensors"]


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path, monkeypatch, hub_folder):
    path, _ = hub_folder
    entry_for(monkeypatch, path)
    path.write_bytes(path.read_bytes() + b"x")
    fails("sha256 is .*, not .*; delete it", weights="imagenet")
    assert not (tmp_path / "cache").exists()


def test_an_unknown_checksum_is_recorded_at_the_first_download(tmp_path, monkeypatch, hub_folder):
    entry_for(monkeypatch, hub_folder[0], known=False)
    pretrained.load("resnet18", "imagenet", STAGES)
    kept = tmp_path / "cache" / "weights" / "resnet18.tv_in1k.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    fails("its sha256 is not", weights="imagenet")


def test_a_mirror_named_by_hf_endpoint_serves_the_hubs_own_library(tmp_path):
    """The real library against a server on this machine that speaks the hub's protocol; the second run needs none."""
    content = write(tmp_path / "model.safetensors", tensors()).read_bytes()
    digest, asked = hashlib.sha256(content).hexdigest(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            known = self.path == "/timm/resnet18.tv_in1k/resolve/main/model.safetensors"
            self.send_response(200 if known or self.path == "/" else 404)
            headers = {"X-Repo-Commit": "a" * 40, "ETag": f'"{digest}"', "Content-Length": len(content)}
            for name, value in headers.items() if known else [("Content-Length", 0)]:
                self.send_header(name, str(value))
            self.end_headers()
            return known

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    program = (
        "import json, sys\nfrom jaxad import pretrained\n"
        f"entry = dict(pretrained.manifest()['resnet18'], sha256={digest!r})\n"
        "pretrained.manifest = lambda: {'resnet18': entry}\n"
        "variables = pretrained.load('resnet18', 'imagenet', ('stem',))\n"
        "print(json.dumps(variables['params']['bn1']['scale'].tolist()))\n"
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folders = {"HF_HOME": str(tmp_path / "hf"), "JAXAD_CACHE": str(tmp_path / "cache")}
    proxies = {name: "" for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_OFFLINE")}
    environment = {**os.environ, **folders, **proxies, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    root = str(pathlib.Path(pretrained.__file__).parents[1])
    run = functools.partial(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, env=environment
    )
    first = run()
    server.shutdown()
    server.server_close()
    assert first.returncode == 0, first.stderr
    assert "/timm/resnet18.tv_in1k/resolve/main/model.safetensors" in asked
    second = run()
    for done in (first, second):
        assert np.allclose(json.loads(done.stdout), tensors()["bn1.weight"]), done.stderr


# ---- the real file


def test_the_real_resnet18_gives_finite_features_and_says_that_layer4_is_missing(real_weights):
    path = real_weights / "resnet18_imagenet_stem_to_layer3.safetensors"
    stages = ("stem", "layer1", "layer2", "layer3")
    variables = pretrained.load("resnet18", path, stages)
    rng = np.random.default_rng(0)
    images = backbones.normalise(np.repeat(rng.random((2, 8, 8, 3), np.float32), 8, 1).repeat(8, 2))
    features = backbones.build("resnet18", stages).apply(variables, images)
    for stage in stages:
        values = np.asarray(features[stage])
        assert np.isfinite(values).all() and values.min() >= 0 and 0.02 < values.mean() < 5, stage
        assert not np.allclose(values[0], values[1])
    fails("no 'layer4.0.*needs for layer4; it looks like resnet18 up to layer3", "resnet18", path, ("layer4",))
