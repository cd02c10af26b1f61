"""Tokens to text: pieces add up to the whole text, and stop texts end it wherever they are cut."""

from hypothesis import given
from hypothesis import strategies as st

from serving.text import Decoding


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, ids, skip_special_tokens=True):
        return bytes(ids).decode("utf-8", "replace")


def streamed(text, stops=()):
    decoding = Decoding(Bytes(), stops)
    pieces = [decoding.add(byte) for byte in text.encode()]
    return [*pieces, decoding.end()], decoding


@given(st.text(max_size=60))
def test_pieces_add_up_to_the_text_and_hold_whole_characters(text):
    text = text.replace("\ufffd", "")
    pieces, decoding = streamed(text)
    assert "".join(pieces) == text == decoding.text
    assert not any("\ufffd" in piece for piece in pieces)


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_stop_text_ends_an_answer_before_it(text, stops):
    pieces, decoding = streamed(text, stops)
    found = [text.find(stop) for stop in stops if stop in text]
    ended = [text.find(stop) + len(stop) for stop in stops if stop in text]
    told = "".join(pieces)
    if not found:
        assert (told, decoding.stopped) == (text, False)
        return
    assert decoding.stopped
    # Of several, the one that is whole first counts: what it begins at is where the answer ends.
    first = min(ended)
    assert told == text[: min(text.find(stop) for stop in stops if stop in text[:first])]


def test_a_control_token_is_left_out_where_it_opens_an_answer():
    decoding = Decoding(Bytes(), (), [ord("a")])
    assert [decoding.add(byte) for byte in b"aba"] == ["", "b", "a"]
