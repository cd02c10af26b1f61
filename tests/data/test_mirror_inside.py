"""A mirror's folder that points elsewhere: nothing there is read, no address is asked."""

import http.server
import threading
from pathlib import Path

import pytest

from data import load
from data.errors import UserError
from data.prompts.hub import mirrored

ROW = '{"prompt": "%s", "label": "benign"}\n'


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    (tmp_path / "secret.jsonl").write_text(ROW % "a secret")
    folder = tmp_path / "mirror" / "own" / "set"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(ROW % "inside")
    return tmp_path / "mirror"


def card(mirror: Path, files: str) -> None:
    text = f"---\nconfigs:\n- config_name: default\n  {files}\n---\nA card.\n"
    (mirror / "own" / "set" / "README.md").write_text(text)


PLACES = (
    "data_files: ../../../secret.jsonl",
    "data_files: [a.jsonl, ../../../secret.jsonl]",
    "data_files: {{train: ../../../secret.jsonl}}",
    "data_files:\n  - split: train\n    path: x/../../../../secret.jsonl",
    "data_files:\n  - split: train\n    path: [a.jsonl, '{absolute}']",
    "data_files: '{absolute}'",
    "data_files: 'file://{absolute}'",
    "data_files: 'hf://datasets/a/b/x.jsonl'",
    "data_files: 'zip://x.jsonl::{absolute}'",
    "data_files: '~/secret.jsonl'",
    "data_dir: ../..",
    "data_dir: '/'",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_card_that_reads_elsewhere_is_refused(mirror: Path, tmp_path: Path, place: str) -> None:
    card(mirror, place.format(absolute=tmp_path / "secret.jsonl"))
    with pytest.raises(UserError, match=r"own/set: its README\.md reads .* not in that folder") as refused:
        load("own/set", mirror)
    assert "\n" not in str(refused.value)


def test_links_out_of_the_folder_are_refused(mirror: Path, tmp_path: Path) -> None:
    (mirror / "own" / "set" / "b.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(UserError, match=r"b\.jsonl is a link out of that folder"):
        load("own/set", mirror)


@pytest.mark.parametrize("text", ["---\na: [\n---\n", "---\n" + "[" * 50_000 + "\n---\n", "---\n- 1\n---\n"])
def test_a_card_that_is_none_is_one_line(mirror: Path, text: str) -> None:
    (mirror / "own" / "set" / "README.md").write_text(text)
    with pytest.raises(UserError) as refused:
        load("own/set", mirror)
    assert "\n" not in str(refused.value)
    assert "own/set" in str(refused.value)


def test_no_address_is_asked(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write((ROW % "from afar").encode())

        do_HEAD = do_GET  # the library's name

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        card(mirror, f"data_files: 'http://127.0.0.1:{server.server_address[1]}/x.jsonl'")
        with pytest.raises(UserError, match="not in that folder"):
            load("own/set", mirror)
        with pytest.raises(UserError, match="not in that folder"), mirrored(mirror):
            import datasets

            datasets.load_dataset("own/set")
    finally:
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "place", ["data_files: a.jsonl", "data_files: '*.jsonl'", "data_files:\n  - split: train\n    path: ./a.jsonl"]
)
def test_files_of_the_folder_are_read(mirror: Path, tmp_path: Path, place: str) -> None:
    card(mirror, place)
    assert load("own/set", mirror)["prompt"].to_list() == ["inside"]
    moved = tmp_path / "linked"
    moved.mkdir()
    (moved / "own").symlink_to(mirror / "own")
    assert load("own/set", moved)["prompt"].to_list() == ["inside"]


def test_other_files_of_the_same_name_are_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for where in ("one", "other"):
        for words in ("first", "later"):
            text = f"{words} of {where}"
            file = tmp_path / where / "own" / "set" / "a.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'{{"prompt": "{text}"}}\n')
            card(tmp_path / where, "data_files: a.jsonl")
            assert load("own/set", tmp_path / where)["prompt"].to_list() == [text]
            with mirrored(tmp_path / where):
                assert datasets.load_dataset("own/set")["train"]["prompt"][:] == [text]
