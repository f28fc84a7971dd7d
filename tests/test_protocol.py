"""The wire between supervisor and child: what is not a message is refused, never half understood."""

from __future__ import annotations

import pytest

from wan2gp import protocol


def test_every_message_survives_the_wire() -> None:
    outcome = protocol.Failed("comfy.exited", "it died", retryable=True)
    finished = protocol.Finished("t", "l", outcome)
    assert protocol.decode_up(protocol.encode(finished)) == finished
    run = protocol.Run("t", "comfy", 1, "l", {"a": [1]}, "/w")
    assert protocol.decode_down(protocol.encode(run)) == run


@pytest.mark.parametrize(
    "frame", [b"", b"{", b"[]", b'{"type":"run"}', b'{"type":"beat","x":1}', b"\xff", b"[" * 100_000]
)
def test_a_frame_that_is_no_message_is_refused(frame: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode_up(frame)


def test_an_oversized_frame_is_refused_in_both_directions() -> None:
    with pytest.raises(protocol.ProtocolError):
        protocol.decode_up(b" " * (protocol.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(protocol.ProtocolError):
        protocol.encode(protocol.Event("x", {"y": "z" * protocol.MAX_MESSAGE_BYTES}))
