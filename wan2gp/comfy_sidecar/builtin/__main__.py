"""`python -m wan2gp.comfy_sidecar.builtin`: builds the server, runs it until SIGINT.

SIGTERM is left to the system: the process dies at once with -15, as ComfyUI does. SIGINT ends cleanly with 0.
A port in use, and data of a node that is no JSON, end it with 1.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from aiohttp import web

from wan2gp.comfy_sidecar.builtin.cache import OutputCache
from wan2gp.comfy_sidecar.builtin.execution import Engine
from wan2gp.comfy_sidecar.builtin.folders import Folders
from wan2gp.comfy_sidecar.builtin.nodes_animation import animation_nodes
from wan2gp.comfy_sidecar.builtin.nodes_audio import audio_nodes
from wan2gp.comfy_sidecar.builtin.nodes_image import image_nodes
from wan2gp.comfy_sidecar.builtin.nodes_plain import plain_nodes
from wan2gp.comfy_sidecar.builtin.nodes_vhs import vhs_nodes
from wan2gp.comfy_sidecar.builtin.nodes_video import video_nodes
from wan2gp.comfy_sidecar.builtin.options import Options, parse
from wan2gp.comfy_sidecar.builtin.progress import InterruptFlag
from wan2gp.comfy_sidecar.builtin.prompt_queue import PromptQueue
from wan2gp.comfy_sidecar.builtin.registry import build_registry
from wan2gp.comfy_sidecar.builtin.server import Server
from wan2gp.comfy_sidecar.builtin.websocket import Hub
from wan2gp.comfy_sidecar.builtin.worker import Worker

KEEP_ALIVE_S = 3630.0
log = logging.getLogger("wan2gp.comfy_sidecar.builtin")


def main(argv: list[str]) -> int:
    options = parse(argv)
    stream = sys.stdout if options.log_stdout else sys.stderr
    logging.basicConfig(level=options.log_level, format="%(message)s", stream=stream)
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder writes its banner to stderr unless told to keep to errors
    folders = Folders(options.input_dir, options.output_dir, options.temp_dir)
    folders.prepare()
    try:
        asyncio.run(serve(options, folders, argv))
    except KeyboardInterrupt:
        log.info("\nStopped server")
    except OSError as error:
        log.error("OSError: %s", error)
        return 1
    except TypeError as error:
        log.error("cannot send a message: %s", error, exc_info=error)
        return 1
    folders.wipe_temp()
    return 0


async def serve(options: Options, folders: Folders, argv: list[str]) -> None:
    """Returns only by an exception: the sender's, or the cancellation of SIGINT."""
    queue = PromptQueue(lambda: hub.queue_updated())
    features = {"supports_preview_metadata": True, "max_upload_size": options.max_upload_bytes}
    hub = Hub(queue.remaining, features, asyncio.get_running_loop())
    core = [image_nodes(folders), video_nodes(folders), audio_nodes(folders), animation_nodes(), plain_nodes()]
    registry = build_registry([*core, vhs_nodes(folders)], options.extra_nodes)
    cache = OutputCache(options.cache_lru)
    engine = Engine(registry, hub, folders, cache, InterruptFlag(), options.metadata)
    server = Server(queue, engine, hub, options.max_upload_bytes, ["main.py", *argv])
    if options.announce:
        log.info("Starting server\n")
    runner = web.AppRunner(server.application(), access_log=None, keepalive_timeout=KEEP_ALIVE_S)
    await runner.setup()
    for address in options.addresses:
        await web.TCPSite(runner, address, options.port).start()
        if options.announce:
            log.info(
                "To see the GUI go to: http://%s:%s",
                f"[{address}]" if ":" in address else address,
                options.port,
            )
    # Last: a prompt cannot come before there is someone to tell about it.
    Worker(queue, engine).start()
    await hub.publish_forever()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
