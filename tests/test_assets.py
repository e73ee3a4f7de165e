"""Assets: what a string names is found or downloaded once, whole and of the right hash, or refused in one line."""

from __future__ import annotations

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from textcraftor import fetch
from textcraftor.assets import cache_dir, folder_or_id, hub_folder, local_file
from textcraftor.captioning.image_to_text import ImageToText
from textcraftor.captioning.prefix import PrefixCaptioner
from textcraftor.captioning.upsample import InstructedModel
from textcraftor.errors import UsageError
from textcraftor.models.loading import load_pipeline
from textcraftor.rewards.clip import ClipScore

CONTENT = bytes(range(256)) * 400
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REVISION = "0123456789" * 4


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT under any name, as a web server does and as the hub does; the server's fields say how."""

    def do_HEAD(self) -> None:
        self.answer(200, CONTENT)

    def do_GET(self) -> None:
        site = self.server
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        site.ranges.append(self.headers.get("Range"))
        start = int(wanted[1]) if wanted and site.resumes else 0
        if start >= len(CONTENT):
            self.answer(416, b"")
            return
        body = CONTENT[start:]
        self.answer(206 if start else 200, body)
        sent = body[: site.breaks_after or None]
        site.served += len(sent)
        self.wfile.write(sent)

    def answer(self, status: int, body: bytes) -> None:
        error = self.server.error
        self.send_response(error[0] if error else status)
        self.send_header("Content-Length", "0" if error else str(len(body)))
        if error:
            self.send_header("X-Error-Code", error[1])
        else:
            self.send_header("ETag", f'"{self.server.etag}"')
            self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Site(ThreadingHTTPServer):
    """A web site on this machine that counts what it serves."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.served, self.breaks_after = 0, 0
        self.resumes, self.error, self.etag = True, None, SHA256
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asset = f"{self.url}/folder/head.pth#sha256={SHA256}"


@pytest.fixture
def online(monkeypatch):
    """Downloads are allowed, as they are not in the other tests."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """Both caches lie in the test's own folder; the hub's is returned."""
    monkeypatch.setenv("TEXTCRAFTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def site(online, monkeypatch):
    """A site that is also the hub."""
    with Site() as site:
        threading.Thread(target=partial(site.serve_forever, poll_interval=0.01)).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.close_session()
        yield site
        huggingface_hub.close_session()
        site.shutdown()


def put_into_hub_cache(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """Lay files out as the hub's client does, under the names that it gives to large ones; the snapshot's folder."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    for path in (folder / "refs", folder / "blobs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def refusal(path: str) -> str:
    """The line that refuses a file."""
    with pytest.raises(UsageError) as refused:
        local_file(path, "HPSv2 checkpoint")
    line = str(refused.value)
    assert line.startswith("HPSv2 checkpoint: ")
    assert "\n" not in line
    return line


def test_a_local_file_is_itself_and_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "head.pth").write_bytes(CONTENT)
    assert local_file("~/head.pth", "head") == local_file(str(tmp_path / "head.pth"), "head") == tmp_path / "head.pth"
    assert folder_or_id("~", "CLIP") == str(tmp_path)
    assert "~/other.pth does not exist" in refusal("~/other.pth")
    assert "is a folder" in refusal("~")


def test_a_folder_must_be_there_and_a_hub_id_passes(tmp_path):
    assert folder_or_id("openai/clip-vit-large-patch14", "CLIP") == "openai/clip-vit-large-patch14"
    for path in ("./clip", "/nowhere/clip", "~/nowhere", "clip", "a/b/c", "weights/head.pth", "hf://a/b/c.pt"):
        with pytest.raises(UsageError, match=r"^CLIP: .* does not exist: give a local folder or a hub id owner/name$"):
            folder_or_id(path, "CLIP")


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("https://host/head.pth", "https://host/file#sha256="),
        ("https://host/head.pth#sha256=12", "https://host/file#sha256="),
        ("hf://owner/repo", "hf://[datasets/]owner/repo[@revision]/file"),
        ("hf://owner/repo/file.pt#sha256=12", "hf://[datasets/]owner/repo[@revision]/file"),
    ],
)
def test_a_malformed_address_is_refused_with_the_form_it_should_have(path, form):
    assert f"{path} is not of the form {form}" in refusal(path)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("place", ["[/x", "exa mple/x", "127.0.0.1/a%00b", "a..b/x", "x:y@/a", "127.0.0.1/\ud800"])
def test_a_place_that_no_request_can_name_is_one_line(place):
    said = refusal(f"https://{place}#sha256={SHA256}")
    assert "could not be had" in said
    assert "\n" not in said


def test_a_url_is_downloaded_once_under_its_own_name(site):
    file = local_file(site.asset, "head")
    assert file.read_bytes() == CONTENT
    assert file.parent == cache_dir()
    assert re.fullmatch(r"[0-9a-f]{16}-head\.pth", file.name)
    assert local_file(site.asset, "head") == file
    assert site.ranges == [None]
    assert not [*cache_dir().glob("*.part")]


def test_a_broken_download_goes_on_where_it_ended(site):
    site.breaks_after = 30_000
    assert f"the connection broke after 30000 of {len(CONTENT)} bytes" in refusal(site.asset)
    site.breaks_after = 0
    assert local_file(site.asset, "head").read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=30000-"]
    assert site.served == len(CONTENT)  # no byte twice


def test_a_download_that_was_whole_but_not_yet_checked_is_not_repeated(site):
    file = local_file(site.asset, "head")
    file.rename(f"{file}.part")
    served = site.served
    assert local_file(site.asset, "head").read_bytes() == CONTENT
    assert site.served == served


def test_a_download_starts_anew_where_the_server_cannot_resume(site):
    site.breaks_after, site.resumes = 30_000, False
    refusal(site.asset)
    site.breaks_after = 0
    assert local_file(site.asset, "head").read_bytes() == CONTENT
    assert site.served == 30_000 + len(CONTENT)


def test_a_wrong_hash_is_refused_and_the_file_is_gone(site):
    line = refusal(site.asset.replace(SHA256, "0" * 64))
    assert f"head.pth has sha256 {SHA256}, expected {'0' * 64}; the file is removed: run again, or correct" in line
    assert [path.suffix for path in cache_dir().iterdir()] in ([".lock"], [])


def test_downloads_at_once_get_the_file_once(site):
    with ThreadPoolExecutor(8) as pool:
        files = set(pool.map(local_file, [site.asset] * 8, ["head"] * 8))
    assert {file.read_bytes() for file in files} == {CONTENT}
    assert site.ranges == [None]


def test_without_network_one_line_says_what_to_do(site):
    site.error = (404, "")
    assert "head.pth could not be had (HTTP Error 404: Not Found): mend that, or give a local path" in refusal(
        site.asset
    )
    with Site() as gone:
        pass
    assert re.search(r"could not be had \(.*refused\): mend that, or give a local path instead", refusal(gone.asset))


def test_offline_mode_forbids_downloads_but_not_what_is_in_the_cache(site, monkeypatch):
    file = local_file(site.asset, "head")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert local_file(site.asset, "head") == file
    assert "HF_HUB_OFFLINE=1 forbids it" in refusal(site.asset.replace("head.pth", "other.pth"))
    assert "hf://owner/repo/file.pt could not be had (it is not in the cache and HF_HUB_OFFLINE=1 forbids it)" in (
        refusal("hf://owner/repo/file.pt")
    )


def test_a_hub_file_in_the_cache_needs_no_network(cache):
    """conftest.py sets HF_HUB_OFFLINE=1."""
    snapshot = put_into_hub_cache(cache, "owner/repo", {"file.pt": CONTENT})
    for path in ("", "@main", f"@{REVISION}"):
        assert local_file(f"hf://owner/repo{path}/file.pt#sha256={SHA256}", "head") == snapshot / "file.pt"
    assert "in the cache" in refusal("hf://owner/repo@other/file.pt")
    assert f"expected {'0' * 64}" in refusal(f"hf://owner/repo/file.pt#sha256={'0' * 64}")
    assert not [*(cache / "models--owner--repo" / "blobs").iterdir()]


def test_a_hub_file_is_downloaded_once_and_its_hash_compared_with_the_hubs(site, cache):
    file = local_file("hf://owner/repo/file.pt", "head")
    assert file.read_bytes() == CONTENT
    assert local_file("hf://owner/repo/file.pt", "head") == file
    assert len(site.ranges) == 1

    site.etag = "0" * 64
    assert f"owner/other/file.pt has sha256 {SHA256}, expected {'0' * 64}" in refusal("hf://owner/other/file.pt")
    assert not [*(cache / "models--owner--other" / "blobs").iterdir()]
    assert not [*(cache / "models--owner--other" / "snapshots" / REVISION).iterdir()]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ((401, "RepoNotFound"), "no such repository, or a private one"),
        ((403, "GatedRepo"), "its owner must grant access"),
        ((404, "RevisionNotFound"), "no such revision"),
        ((404, "EntryNotFound"), "no such file in its repository"),
    ],
)
def test_what_the_hub_refuses_is_one_line(site, error, reason):
    site.error = error
    line = refusal("hf://owner/repo/file.pt")
    assert reason in line
    assert "give a local path instead" in line


def test_a_hub_folder_is_checked_and_must_hold_weights(cache):
    files = {"config.json": b"{}", "model.safetensors": CONTENT}
    snapshot = put_into_hub_cache(cache, "owner/whole", files)
    assert hub_folder("owner/whole", "CLIP") == snapshot
    (snapshot / "model.safetensors").resolve().write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"^CLIP: owner/whole/model.safetensors has sha256 .*the file is removed"):
        hub_folder("owner/whole", "CLIP")
    assert not (snapshot / "model.safetensors").is_symlink()

    put_into_hub_cache(cache, "owner/tokens", {"tokenizer.json": b"{}"})
    assert hub_folder("owner/tokens", "tokenizer", weights=False).is_dir()
    with pytest.raises(UsageError, match=r"^CLIP: owner/tokens holds neither model.safetensors nor pytorch_model.bin"):
        hub_folder("owner/tokens", "CLIP")


@pytest.mark.parametrize(
    ("what", "load"),
    [
        ("model.path", load_pipeline),
        ("captioner.path", partial(ImageToText, prompt=None)),
        ("captioner.language_model", partial(PrefixCaptioner, "no/clip")),
        ("upsampler.path", InstructedModel),
        ("CLIP", ClipScore.load),
    ],
)
def test_a_model_that_is_not_in_the_cache_is_missed_in_one_line(what, load):
    """Whichever library's loader it is that misses it; the suite forbids the hub."""
    with pytest.raises(UsageError) as refused:
        load("nobody/nothing")
    line = str(refused.value)
    assert line.startswith(f"{what}: nobody/nothing cannot be loaded (it is not in the cache and HF_HUB_OFFLINE=1")
    assert "\n" not in line


def test_fetch_finds_the_whole_toybox_local(configure, capsys, tmp_path):
    config = configure("fetch")
    assert fetch.run(config, tmp_path / "run") == f"all {len(fetch.assets_of(config))} assets are there"
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*fetch.assets_of(config)]
    assert {"model.path", "prompts.path", "rewards.hpsv2.reward.checkpoint"} <= set(fetch.assets_of(config))
    assert all(re.search(r"\(\d[\d.]* (B|kB|MB|GB), local already\)$", line) for line in lines)
    assert not (tmp_path / "run").exists()


def test_fetch_leaves_out_a_scorer_that_is_taken_out(configure):
    found = fetch.assets_of(configure("fetch", "rewards.hpsv2=null"))
    assert any(key.startswith("rewards.clip") for key in found)
    assert not any(key.startswith("rewards.hpsv2") for key in found)


def test_fetch_gets_the_others_before_it_says_what_is_missing(configure, capsys, site, tmp_path):
    config = configure("fetch", "rewards=hpsv2", "rewards.hpsv2.reward.checkpoint=missing.pt")
    config.rewards.hpsv2.reward.tokenizer = "/nowhere"
    config.prompts.held_out = site.asset
    count = len(fetch.assets_of(config))
    with pytest.raises(UsageError) as refused:
        fetch.run(config, tmp_path)
    line = str(refused.value)
    assert line.startswith(f"2 of {count} assets are missing. ")
    assert "rewards.hpsv2.reward.checkpoint: missing.pt does not exist: give a local file" in line
    assert "rewards.hpsv2.reward.tokenizer: /nowhere does not exist: give a local folder" in line
    assert "\n" not in line
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == count - 2
    assert [line for line in lines if line.startswith(f"prompts.held_out: {cache_dir()}") and "already" not in line]


def test_fetch_refuses_a_malformed_address_before_any_download(configure, site, tmp_path):
    config = configure("fetch")
    config.prompts.path, config.prompts.held_out = site.asset, "https://host/prompts.txt"
    with pytest.raises(UsageError, match=r"^prompts.held_out: https://host/prompts.txt is not of the form"):
        fetch.check(config, tmp_path)
    assert not site.ranges


def test_fetch_knows_assets_from_other_strings_and_weights_from_tokenizers(configure, cache, tmp_path):
    """Model and scorers' files are assets; null prompts, names of architectures and other settings are none."""
    assert fetch.assets_of(configure("fetch", "model=sd15", "rewards=hpsv2")).keys() == {
        "model.path",
        "rewards.hpsv2.reward.checkpoint",
        "rewards.hpsv2.reward.tokenizer",
    }
    reward = {"_target_": "a.B.load", "mode": "mean", "parts": [{"reader": "owner/reader"}], "more": "~/head"}
    found = fetch.assets_of(
        OmegaConf.create(
            {
                "model": {"path": "owner/model", "config": None},
                "prompts": {"path": None, "held_out": None},
                "rewards": {"own": {"reward": reward, "weight": 1.0}},
            }
        )
    )
    assert [*found] == ["model.path", "rewards.own.reward.parts.0.reader", "rewards.own.reward.more"]
    put_into_hub_cache(cache, "owner/tokens", {"tokenizer.json": b"{}"})
    assert fetch.get("rewards.own.reward.tokenizer", "owner/tokens").name == REVISION
    for key in ("rewards.own.reward.clip", "model.path"):
        with pytest.raises(UsageError, match=f"^{key}: owner/"):
            fetch.get(key, "owner/tokens" if "clip" in key else "owner/model")
