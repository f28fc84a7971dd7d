"""The HTTP routes. Each exists plain and under /api. What fails unforeseen is aiohttp's 500, as there."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from wan2gp.comfy_sidecar.builtin import files
from wan2gp.comfy_sidecar.builtin.execution import Engine
from wan2gp.comfy_sidecar.builtin.prompt_queue import Item, PromptQueue
from wan2gp.comfy_sidecar.builtin.registry import Json
from wan2gp.comfy_sidecar.builtin.validation import problem, validate_prompt
from wan2gp.comfy_sidecar.builtin.websocket import Hub

API_VERSION = "0.3.64"
"""The ComfyUI whose answers are given here."""
DEEPEST = 100
"""Levels of lists and objects in the body of POST /prompt; a large graph has five."""
WELCOME = "<!doctype html><title>wan2gp</title><p>The built-in engine: ComfyUI's API, no page."
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


@dataclass
class Server:
    """`number` counts the prompts taken."""

    queue: PromptQueue
    engine: Engine
    hub: Hub
    max_upload_bytes: int
    argv: list[str]
    number: float = 0

    def application(self) -> web.Application:
        """Every plain route first, then the same under /api, and at last what catches the rest."""
        app = web.Application(client_max_size=self.max_upload_bytes, middlewares=[same_origin])
        for prefix in ("", "/api"):
            for method, path, handler in self._routes():
                app.router.add_route(method, prefix + path, handler)
                if method == "GET" and path != "/ws":
                    app.router.add_route("HEAD", prefix + path, handler)
        app.router.add_get("/{rest:.*}", not_found)
        return app

    def _routes(self) -> list[tuple[str, str, Handler]]:
        folders = self.engine.folders
        return [
            ("GET", "/", welcome),
            ("GET", "/ws", self.hub.serve),
            ("GET", "/prompt", self.get_prompt),
            ("POST", "/prompt", self.post_prompt),
            ("GET", "/queue", self.get_queue),
            ("POST", "/queue", self.post_queue),
            ("POST", "/interrupt", self.post_interrupt),
            ("POST", "/free", self.post_free),
            ("GET", "/history", self.get_history),
            ("GET", "/history/{prompt_id}", self.get_history_entry),
            ("POST", "/history", self.post_history),
            ("GET", "/system_stats", self.get_system_stats),
            ("GET", "/features", self.get_features),
            ("GET", "/object_info", self.get_object_info),
            ("GET", "/object_info/{node_class}", self.get_node_info),
            ("GET", "/view", lambda request: files.view(request, folders)),
            ("POST", "/upload/image", lambda request: files.upload(request, folders)),
        ]

    async def get_prompt(self, request: web.Request) -> web.Response:
        return web.json_response({"exec_info": {"queue_remaining": self.queue.remaining()}})

    async def post_prompt(self, request: web.Request) -> web.Response:
        """A non-empty `node_errors` in a 200 names outputs that will not run. Any content type will do."""
        log.info("got prompt")
        body = await request.json()
        number = self._number(body)
        if "prompt" not in body:
            return refused(problem("no_prompt", "No prompt provided", "No prompt provided"), {})
        prompt = body["prompt"]
        if _is_deeper(body, DEEPEST):
            message = f"Cannot execute because the prompt is nested deeper than {DEEPEST} levels."
            return refused(problem("invalid_prompt", message, message), {})
        prompt_id = str(body.get("prompt_id", uuid.uuid4()))
        verdict = validate_prompt(prompt, self.engine.registry, body.get("partial_execution_targets"))
        if verdict.node_errors or verdict.error:
            log.warning("Failed to validate prompt: %s %s", verdict.error, list(verdict.node_errors))
        if verdict.error:
            return refused(verdict.error, verdict.node_errors)
        # `dict` raises for what is no object: a 500 here, where the worker thread would die of it later.
        extra_data = dict(body.get("extra_data", {}))
        if "client_id" in body:
            extra_data["client_id"] = body["client_id"]
        self.queue.put((number, prompt_id, prompt, extra_data, verdict.outputs))
        return web.json_response({"prompt_id": prompt_id, "number": number, "node_errors": verdict.node_errors})

    def _number(self, body: Any) -> float:
        if "number" in body:
            return float(body["number"])
        number = self.number
        self.number += 1
        return -number if "front" in body and body["front"] else number

    async def get_queue(self, request: web.Request) -> web.Response:
        running, pending = self.queue.snapshot()
        return web.json_response({"queue_running": _listed(running), "queue_pending": _listed(pending)})

    async def post_queue(self, request: web.Request) -> web.Response:
        clear, prompt_ids = await _what_to_delete(request)
        if clear:
            self.queue.clear()
        for prompt_id in prompt_ids:
            self.queue.delete(prompt_id)
        return web.Response()

    async def post_interrupt(self, request: web.Request) -> web.Response:
        """With an id: only when that prompt runs. A body that is no JSON asks for whatever runs."""
        try:
            body = await request.json()
        except json.JSONDecodeError:
            body = {}
        prompt_id = body.get("prompt_id")
        if not prompt_id or self.queue.is_running(prompt_id):
            self.engine.interrupt.set()
        return web.Response()

    async def post_free(self, request: web.Request) -> web.Response:
        """Done by the worker after the prompt that runs."""
        body = await request.json()
        for name in ("unload_models", "free_memory"):
            if body.get(name):
                self.queue.set_flag(name, body[name])
        return web.Response()

    async def get_history(self, request: web.Request) -> web.Response:
        wanted = request.rel_url.query
        max_items = int(wanted["max_items"]) if "max_items" in wanted else None
        return web.json_response(self.queue.history(max_items, int(wanted.get("offset", -1))))

    async def get_history_entry(self, request: web.Request) -> web.Response:
        return web.json_response(self.queue.history_of(request.match_info["prompt_id"]))

    async def post_history(self, request: web.Request) -> web.Response:
        clear, prompt_ids = await _what_to_delete(request)
        if clear:
            self.queue.clear_history()
        for prompt_id in prompt_ids:
            self.queue.delete_history(prompt_id)
        return web.Response()

    async def get_features(self, request: web.Request) -> web.Response:
        return web.json_response(self.hub.features)

    async def get_system_stats(self, request: web.Request) -> web.Response:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        system = {
            "os": os.name,
            "ram_total": total,
            "ram_free": free,
            "comfyui_version": API_VERSION,
            "required_frontend_version": "0",
            "installed_templates_version": "0",
            "required_templates_version": "0",
            "python_version": sys.version,
            "pytorch_version": "none",
            "embedded_python": False,
            "argv": self.argv,
        }
        device = {
            "name": "cpu",
            "type": "cpu",
            "index": None,
            "vram_total": total,
            "vram_free": free,
            "torch_vram_total": total,
            "torch_vram_free": free,
        }
        return web.json_response({"system": system, "devices": [device]})

    async def get_object_info(self, request: web.Request) -> web.Response:
        described: Json = {}
        for name, node_type in self.engine.registry.items():
            try:
                described[name] = node_type.describe()
            except Exception as error:  # a node's own code: it is left out of the list, the others are there
                log.error("An error occurred while retrieving information for the '%s' node.", name, exc_info=error)
        return web.json_response(described)

    async def get_node_info(self, request: web.Request) -> web.Response:
        node_type = self.engine.registry.get(request.match_info["node_class"])
        return web.json_response({node_type.name: node_type.describe()} if node_type else {})


async def _what_to_delete(request: web.Request) -> tuple[bool, Iterable[Any]]:
    """Whether all, and which ids. A list or a text in place of the object names neither, as there."""
    body = await request.json()
    return bool("clear" in body and body["clear"]), body["delete"] if "delete" in body else ()


def _is_deeper(value: Any, limit: int) -> bool:
    """Copies and keys of a prompt are made recursively: too deep a one would end the worker thread."""
    if limit == 0:
        return True
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_is_deeper(item, limit - 1) for item in items)


def _listed(items: list[Item]) -> list[list[Any]]:
    return [list(item) for item in items]


def refused(error: Json, node_errors: Json) -> web.Response:
    return web.json_response({"error": error, "node_errors": node_errors}, status=400)


async def welcome(request: web.Request) -> web.Response:
    return web.Response(text=WELCOME, content_type="text/html")


async def not_found(request: web.Request) -> web.Response:
    return web.Response(status=404, headers={"Content-Type": "application/octet-stream"})


@web.middleware
async def same_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page of another origin must not talk to a server on this machine; OPTIONS is answered empty."""
    if await _is_foreign(request.headers.get("Host", ""), request.headers.get("Origin", "")):
        log.warning("WARNING: request with non matching host and origin, returning 403")
        return web.Response(status=403)
    if request.method == "OPTIONS":
        return web.Response()
    return await handler(request)


async def _is_foreign(host: str, origin: str) -> bool:
    if not host or not origin:
        return False
    here, there = urlsplit(f"//{host}"), urlsplit(origin)
    if not here.hostname or not there.netloc or not await is_loopback(here.hostname):
        return False
    if here.port is None or there.port is None:
        return here.hostname != there.hostname
    return here.netloc.lower() != there.netloc.lower()


async def is_loopback(host: str) -> bool:
    """Of a name: whether it resolves to loopback only. A slow resolver holds up this request alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)
