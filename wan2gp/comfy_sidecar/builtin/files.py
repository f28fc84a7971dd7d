"""GET /view and POST /upload/image: files in and out of the three folders, and nowhere else."""

from __future__ import annotations

import asyncio
import io
import mimetypes
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import web

from wan2gp.comfy_sidecar.builtin.folders import Folders, is_inside
from wan2gp.comfy_sidecar.builtin.nodes_image import file_digest

OCTETS = "application/octet-stream"
RUNNABLE = ("text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css")
"""Types a browser would run; they are sent as octets."""
CHUNK_BYTES = 1 << 20


async def view(request: web.Request, folders: Folders) -> web.StreamResponse:
    """404: no such file; 400: a bad name or type; 403: a subfolder outside. Ranges are aiohttp's."""
    wanted = request.rel_url.query
    if "filename" not in wanted:
        return web.Response(status=404)
    filename, root = folders.split_annotated(wanted["filename"])
    if not filename or filename.startswith("/") or ".." in filename:
        return web.Response(status=400)
    root = root or folders.by_type(wanted.get("type", "output"))
    if root is None:
        return web.Response(status=400)
    folder = Path(os.path.abspath(root / wanted.get("subfolder", "")))
    if not is_inside(root, folder):
        return web.Response(status=403)
    name = os.path.basename(filename)
    path = folder / name
    if not os.path.isfile(path):
        return web.Response(status=404)
    disposition = {"Content-Disposition": f'filename="{name}"'}
    if "preview" in wanted or wanted.get("channel", "rgba") != "rgba":
        kind, data = await asyncio.to_thread(_picture, path, wanted.get("preview"), wanted.get("channel", "rgba"))
        return web.Response(body=data, content_type=kind, headers=disposition)
    guessed = mimetypes.guess_type(name)[0] or OCTETS
    kind = OCTETS if guessed in RUNNABLE else guessed
    return web.FileResponse(path, headers={**disposition, "Content-Type": kind})


def _picture(path: Path, preview: str | None, channel: str) -> tuple[str, bytes]:
    """A smaller copy (`webp;50`), or one part of a picture. A file that is no picture raises: 500."""
    from PIL import Image

    data = io.BytesIO()
    with Image.open(path) as opened:
        if preview is not None:
            kind, _, quality = preview.partition(";")
            kind = kind if kind in ("webp", "jpeg") else "webp"
            image = opened.convert("RGB") if kind == "jpeg" or channel == "rgb" else opened
            image.save(data, format=kind, quality=int(quality) if quality.isdigit() else 90)
            return f"image/{kind}", data.getvalue()
        if channel == "rgb":
            opened.convert("RGB").save(data, format="PNG")
        else:
            alpha = Image.new("RGBA", opened.size)
            alpha.putalpha(opened.convert("RGBA").getchannel("A"))
            alpha.save(data, format="PNG")
    return "image/png", data.getvalue()


async def upload(request: web.Request, folders: Folders) -> web.Response:
    """The answer's name is the one to use: another file of that name makes it `x (1).png`."""
    post = await request.post()
    image: Any = post.get("image")
    if not image or not image.file or not image.filename:
        return web.Response(status=400)
    kind = str(post.get("type", "input"))
    root = folders.by_type(kind)
    if root is None:
        raise ValueError(f"cannot upload: there is no folder of type {kind}")
    subfolder = str(post.get("subfolder", ""))
    folder = Path(os.path.abspath(root / os.path.normpath(subfolder)))
    path = Path(os.path.abspath(folder / image.filename))
    if not is_inside(root, path):
        return web.Response(status=400)
    folder.mkdir(parents=True, exist_ok=True)
    overwrite = post.get("overwrite") in ("true", "1")
    name = await asyncio.to_thread(_store, image.file, path, overwrite)
    return web.json_response({"name": name, "subfolder": subfolder, "type": kind})


def _store(data: BinaryIO, path: Path, overwrite: bool) -> str:
    """The name as given when nothing was in its way; `path` may be in a folder the name brought along."""
    name = path.name
    stem, suffix = os.path.splitext(name)
    number = 1
    while not overwrite and path.exists():
        if _same(data, path):
            return name
        name = f"{stem} ({number}){suffix}"
        path = path.with_name(name)
        number += 1
    with path.open("wb") as file:
        data.seek(0)
        shutil.copyfileobj(data, file, CHUNK_BYTES)
    return name


def _same(data: BinaryIO, path: Path) -> bool:
    import hashlib

    data.seek(0)
    digest = hashlib.sha256()
    while block := data.read(CHUNK_BYTES):
        digest.update(block)
    return digest.hexdigest() == file_digest(path)
