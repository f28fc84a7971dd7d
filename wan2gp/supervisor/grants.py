"""What any handler may read on this machine: Python, programs, libraries and the public part of ``/etc``.

A grant opens all that lies below it, so one that would open a closed place too is replaced by grants of its parts. What
an environment variable or ``sys.path`` names is not taken at its word: a home directory is never granted whole.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import site
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from wan2gp.config import Config
from wan2gp.sandbox.interpreters import PREFIX_PARTS, interpreter_places
from wan2gp.sandbox.links import below, real
from wan2gp.supervisor.users import PACKAGE

SYSTEM = (
    *("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin", "/opt", "/nix/store", "/gnu/store"),
    *("/proc", "/sys", "/var/cache/fontconfig", "/var/lib/ca-certificates"),
)
LISTS = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
"""Variables that hold several paths."""
PLACES = (
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "CUDA_HOME", "CUDA_PATH"),
    *("IMAGEIO_FFMPEG_EXE", "VHS_FORCE_FFMPEG_PATH", "FFMPEG_BINARY", "PYTHONPYCACHEPREFIX"),
)
"""Variables that hold one path, to be read. Byte code in a shared place is read only: the supervisor runs it too."""
FONTS = (".fonts", ".local/share/fonts")
"""Below the home directory."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
TERMINALS = ("/dev/ptmx", "/dev/pts")
"""Not among those: the terminal of whoever started the worker is one of them, and belongs to the same user. A handler
with a user of its own gets them: the kernel looks at Landlock's rules for the other end of a new one too."""
GPU_DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg")
OWN = (
    *("spool", "pg", "pg.lock", "outputs", "logs", "work", "handlers", "run.json", "control.token"),
    *("supervisor.lock", "children.json", "instance"),
)
"""Below the data directory: what no handler may read."""
KEY_FILES = (".env", ".env.local", ".git")
"""Beside the package, the configuration, or where the worker was started. Addresses of remotes may hold tokens."""
PRIVATE = (".ssh", ".gnupg", ".aws", ".azure", ".config", ".docker", ".kube", ".netrc", ".pgpass", ".bash_history")
"""Below home directories."""
SITE = os.path.realpath(sysconfig.get_path("purelib"))
ETC = Path("/etc")
PUBLIC = 0o004
MANY = 4000
"""A directory of more entries is not granted by its parts."""


def own_places(config: Config) -> frozenset[Path]:
    """What no grant may open by lying above it, without links: of the data directory, and where keys stand."""
    found = [*(config.data_dir / name for name in OWN), config.run_directory(), *_key_files(config)]
    return frozenset(Path(os.path.realpath(place)) for place in found)


def _key_files(config: Config) -> Iterator[Path]:
    """The configuration may hold keys, and so may what people keep beside a program. What is not there is no closed
    place: it would only part the directory that it could be in."""
    files = [Path(name).expanduser().absolute() for name in (config.config_file, config.supabase_key_file) if name]
    folders = {Path.cwd(), config.data_dir, PACKAGE.parent, *(file.parent for file in files)}
    files += [folder / name for folder in folders for name in KEY_FILES]
    yield from (file for file in files if os.path.lexists(file))


def private_places(config: Config) -> tuple[Path, ...]:
    """What no list of directories and no link among the models may open either."""
    homes = [Path(home) for home in sorted(_homes() - {"/", "/home"})]
    return (*sorted(own_places(config)), *(home / name for home in homes for name in PRIVATE), Path("/etc/shadow"))


def closed_to_readers(config: Config) -> frozenset[Path]:
    """What no grant to read may open. A private place that is not there would part the directory that it could be in,
    and ``HOME`` may be any."""
    own = own_places(config)
    return own | {place for place in private_places(config) if os.path.lexists(place)}


def closed_to_writers(config: Config) -> frozenset[Path]:
    """What no setting may let a handler write to: that too, whether it is there or not, and what the worker itself
    runs."""
    ours = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    ours += [str(PACKAGE), *([sys.prefix] if sys.prefix != sys.base_prefix else [])]
    return frozenset(private_places(config)) | {Path(os.path.realpath(place)) for place in ours}


def is_home(place: str) -> bool:
    """Whether it is a home directory, or above one: nothing of that size is written to by the word of a setting."""
    return not _modest(place, _homes())


def around(place: str | Path, closed: Iterable[Path]) -> list[str]:
    """Grants that open ``place``, a path without links, without opening any closed place: itself, or its parts; links
    among those are left out, since they lead elsewhere."""
    return _around(str(place), [str(shut) for shut in closed])


def _around(path: str, closed: list[str]) -> list[str]:
    near = [shut for shut in closed if below(shut, path)]
    if any(below(path, shut) for shut in closed):
        return []
    return [grant for part in _parts(path) for grant in _around(part, near)] if near else [path]


def _parts(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.path for entry in entries if not entry.is_symlink()]
    except OSError:
        return []
    return found if len(found) <= MANY else []


def common_reads(config: Config, environ: Mapping[str, str], untrusted: Iterable[str] = ()) -> tuple[str, ...]:
    """For every handler of this worker, but for what a setting names; ``environ`` is the supervisor's, which its
    children inherit. No link in an untrusted place is followed."""
    closed, untrusted = closed_to_readers(config), tuple(untrusted)
    ends = (real(place, untrusted) for place in dict.fromkeys((*SYSTEM, *_found_places(environ))))
    found = [grant for end in ends if end is not None for grant in around(end, closed)]
    return tuple(dict.fromkeys([*found, *public_etc(closed)]))


def import_folders(reads: Iterable[str], untrusted: Iterable[str] = ()) -> tuple[str, ...]:
    """Where modules come from, if these grants open only parts of it: Python finds none where it may not list."""
    opened, untrusted, homes = frozenset(reads), tuple(untrusted), _homes()
    ends = [real(place, untrusted) for place in _python_path() if _modest(place, homes)]
    return tuple(dict.fromkeys(end for end in ends if end is not None and not any(below(end, one) for one in opened)))


def _found_places(environ: Mapping[str, str]) -> Iterator[str]:
    """What Python and the environment name, without what is too large to be meant."""
    homes = _homes()
    for prefix in dict.fromkeys((sys.prefix, sys.exec_prefix, sys.base_prefix, *interpreter_places(sys.executable))):
        yield from ((prefix,) if _modest(prefix, homes) else (f"{prefix}/{part}" for part in PREFIX_PARTS))
    named = [*(part for place in _python_path() for part in _modules(place)), str(PACKAGE)]
    named += user_packages(environ)
    named += [part for name in LISTS for part in environ.get(name, "").replace(" ", ":").split(":")]
    named += [environ.get(name, "") for name in PLACES]
    yield from (place for place in named if place.startswith("/") and _modest(place, homes))
    yield from (f"{home}/{fonts}" for home in homes - {"/", "/home"} for fonts in FONTS)


def user_base(environ: Mapping[str, str]) -> str:
    """Below which ``pip install --user`` has put the packages of the worker's own user."""
    return environ.get("PYTHONUSERBASE", "") or site.getuserbase()


def user_packages(environ: Mapping[str, str]) -> list[str]:
    """Of every version of Python; none where nothing was installed so."""
    return glob.glob(f"{glob.escape(user_base(environ))}/lib/python*/site-packages")


def _python_path() -> list[str]:
    """Where modules come from. The working directory, which Python puts first unless told otherwise, is no such place,
    unless it is named."""
    strange = "" if getattr(sys.flags, "safe_path", False) or os.getcwd() in _named_path() else os.getcwd()
    return [place for place in sys.path if place and place != strange]


def _modules(place: str) -> list[str]:
    """What is imported from there: of a checkout that we are installed from, the package and what tells of it."""
    if place in _named_path() or os.path.realpath(place) != str(PACKAGE.parent) or str(PACKAGE.parent) == SITE:
        return [place]
    return [str(PACKAGE), *glob.glob(f"{glob.escape(place)}/*.egg-info")]


def _named_path() -> list[str]:
    return os.environ.get("PYTHONPATH", "").split(":")


def _homes() -> frozenset[str]:
    """Home directories, and where they are."""
    found = {"/", "/home", "/root", os.path.realpath(os.path.expanduser("~"))}
    with contextlib.suppress(KeyError):
        found.add(os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir))
    return frozenset(found)


def _modest(place: str, homes: frozenset[str]) -> bool:
    """Whether it is neither a home directory nor above one."""
    path = os.path.realpath(place)
    return not any(home == path or home.startswith(path.rstrip("/") + "/") for home in homes)


def public_etc(closed: Iterable[Path] = ()) -> list[str]:
    """``/etc`` without what only some users may read, and what its links lead to (``resolv.conf`` above all)."""
    closed = frozenset((*closed, *_secret(ETC, 6)))
    return [*around(ETC, closed), *(grant for place in _linked(ETC) for grant in around(place, closed))]


def _secret(folder: Path, depth: int) -> Iterator[Path]:
    """What is not everybody's to read, down to some depth; what lies deeper is taken for secret."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    continue
                if not entry.stat().st_mode & PUBLIC or (depth == 0 and entry.is_dir()):
                    yield Path(entry.path)
                elif entry.is_dir():
                    yield from _secret(Path(entry.path), depth - 1)
    except OSError:
        yield folder


def _linked(folder: Path) -> Iterator[str]:
    """Public files outside that links in it lead to. Such a file is replaced rather than rewritten, so its directory
    is granted; not those in which everything else is."""
    for link in glob.glob(f"{folder}/*"):
        target = os.path.realpath(link)
        if not os.path.islink(link) or target.startswith((f"{folder}/", "/proc/", "/root/", "/home/")):
            continue
        with contextlib.suppress(OSError):
            if os.stat(target).st_mode & PUBLIC:
                parent = os.path.dirname(target)
                yield target if parent.count("/") < 2 or os.path.isdir(target) else parent


def devices() -> tuple[str, ...]:
    """Device files that an engine uses, as they are now."""
    return (*DEVICES, *(found for pattern in GPU_DEVICES for found in sorted(glob.glob(pattern))))


def device_groups() -> tuple[int, ...]:
    """Groups that may use GPU devices which not everybody may."""
    found = set()
    for device in devices()[len(DEVICES) :]:
        for node in (device, *glob.glob(f"{device}/*")):
            with contextlib.suppress(OSError):
                status = os.stat(node)
                if stat.S_ISCHR(status.st_mode) and not status.st_mode & 0o002 and status.st_gid:
                    found.add(status.st_gid)
    return tuple(sorted(found))
