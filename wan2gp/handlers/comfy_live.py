"""A ComfyUI that answers, ours or somebody else's, for as long as it lives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wan2gp.comfy_sidecar.about import FailedCustomNode
from wan2gp.comfy_sidecar.catalogue import Catalogue
from wan2gp.comfy_sidecar.client import ComfyClient
from wan2gp.comfy_sidecar.events import EventStream
from wan2gp.comfy_sidecar.server import ComfyServer, Folders

NOT_OURS = "; it is an external server (COMFY_URL): whoever runs it must start it again, this worker does not"


class Live:
    """A server that answers, for as long as it lives. ``server`` is None for an external one."""

    def __init__(self, client: ComfyClient, server: ComfyServer | None, name: str, about: Mapping[str, str]) -> None:
        """``about``: ``version``, ``python``, ``torch`` … as :func:`wan2gp.comfy_sidecar.about.read_about` has them."""
        self.client = client
        self.server = server
        self.name = name
        self.about = dict(about)
        self.stream = EventStream(client.base_url)
        self.catalogue = Catalogue(client.object_info)

    @property
    def version(self) -> str:
        """ComfyUI's own; empty when it does not say."""
        return self.about.get("version", "")

    def engine(self) -> dict[str, Any]:
        """For ``result_data.engine``: what ran the graph, with its versions."""
        known: dict[str, Any] = {"name": self.name, "version": "", **self.about}
        return known if self.server is not None else {**known, "external": True}

    def failed_custom_nodes(self) -> tuple[FailedCustomNode, ...]:
        """Custom nodes that our server started without; of an external one nothing is known."""
        return self.server.failed_custom_nodes() if self.server else ()

    def not_ours(self) -> str:
        """For the end of a sentence about a server in trouble; empty for one that we start and end."""
        return "" if self.server is not None else NOT_OURS

    @property
    def folders(self) -> Folders | None:
        """Where its files are; None when they are on another machine."""
        return self.server.folders if self.server else None

    def lines_printed(self) -> int:
        """How many lines its process printed so far."""
        return self.server.process.printed if self.server else 0

    def lines_since(self, printed: int) -> list[str]:
        """What its process printed after that many lines; nothing of an external one."""
        if self.server is None:
            return []
        self.server.process.caught_up()
        return self.server.process.lines_since(printed)

    def exit_code(self) -> int | None:
        return self.server.exit_code() if self.server else None

    def node_info(self, class_type: str) -> dict[str, Any] | None:
        """What the class declares, asked for once in the server's life."""
        return self.catalogue.node_info(class_type)

    def fresh_stream(self) -> EventStream:
        """The event stream, connected if that is possible; a broken one is replaced by one with a new id."""
        if not self.stream.alive:
            self.stream.close()
            self.stream = EventStream(self.client.base_url)
            self.stream.connect()
        return self.stream

    def close(self) -> None:
        self.stream.close()
        self.client.close()
