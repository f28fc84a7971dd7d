"""A stand-in for Wan2GP's ``wgp.py``: no model, real files. What a job does is said by words of its prompt that begin
with ``@`` (see ``SCENARIOS``), and what the import does by the variable WAN_ROOT_IMPORT.

What it does is written down in ``stand-in.jsonl`` beside the root: loads, tasks with the settings that arrived.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import signal
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

from shared.utils import download

WanGP_version = "12.60"
settings_version = 2.74
ATTACHMENT_KEYS = (
    *("image_start", "image_end", "image_refs", "image_guide", "image_mask", "video_guide", "video_mask"),
    *("video_source", "audio_guide", "audio_guide2"),
)
LATER = threading.Event()
"""Never set: its wait is a sleep that a test's end does not wait for."""
SCENARIOS = {
    "@oom-a": "in sampling: a traceback, then a sentence of the engine's own that leaves out the bytes",
    "@oom-a-ram": "the same, for the host's memory, and with a sentence that says so",
    "@oom-b": "in the load: the raw message, nothing printed",
    "@oom-c": "of the host's memory: the generic message, in quotes",
    "@oom-once": "as @oom-b, at the first attempt in this process only",
    "@boom": "any other error: the message is the repr of a string",
    "@cuda-error": "an error after which the process's CUDA is of no use",
    "@no-file": "a success without a file",
    "@missing": "a file that all models share is wanted",
    "@folder": "a whole folder of a repository is wanted",
    "@library": "a library looks for a file that need not be there",
    "@orphan": "a preview cannot be decoded: the job ends, the worker goes on",
    "@late-teardown": "the job's thread lives on after its result",
    "@noise": "prints to file descriptor 1, as a library in C does",
    "@cancel-and-fail": "a cancel comes with an error of its own",
    "@deaf": "a cancel is not heard",
    "@windows": "a file for each window of a long video",
    "@kill-load": "SIGKILL in the load",
    "@kill-step": "SIGKILL in sampling",
    "@kill-decode": "SIGKILL in decoding, with half a file written",
    "@silent": "nothing is said any more",
    "@many": "thousands of lines and progress events",
    "@link": "the result is a link to somewhere else",
    "@others-file": "the result lies in another directory",
    "@bad-word": "garbage",
}
NUMBERS = {"steps": 3, "step_s": 0.005, "load_s": 0.02, "orphan_s": 0.5}
"""`@step_s=0.2` in a prompt sets one."""
OOM = (
    "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.99 GiB of which 0 bytes is free."
)
UNSUFFICIENT = "The generation of the video has encountered an error: it is likely that you have unsufficient {} and "


def written(event, **fields):
    """For tests, which read it."""
    with open(os.path.join(ROOT, "..", "stand-in.jsonl"), "a") as file:
        file.write(json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n")


def parsed_arguments():
    parser = argparse.ArgumentParser()
    for name in ("--attention", "--config", "--profile", "--loras", "--gpu", "--preload"):
        parser.add_argument(name, default="")
    parser.add_argument("--perc-reserved-mem-max", type=float, default=0)
    parser.add_argument("--vram-safety-coefficient", type=float, default=0.8)
    parser.add_argument("--fp16", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args(sys.argv[1:])


def fail_to_import(how):
    if how == "no_cuda":
        raise AssertionError("Torch not compiled with CUDA enabled")
    if how == "module":
        raise ModuleNotFoundError("No module named 'mmgp'")
    if how == "exit":  # versions do not fit together: a bare exit(), which is exit code 0
        print("Incorrect version of mmgp (3.7.11), version 3.7.12 is needed. Please upgrade with the command 'pip'")
        raise SystemExit
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "silent":
        time.sleep(60)
    if how == "noise":
        os.write(1, b'{"is": "ready"}\n')
        print("a banner")


ROOT = os.getcwd()
args = parsed_arguments()
fail_to_import(os.environ.get("WAN_ROOT_IMPORT", ""))
with open("wgp_config.json") as _file:
    server_config = json.load(_file)
attention_mode = server_config["attention_mode"]
checkpoints_paths = server_config["checkpoints_paths"]
os.makedirs("settings", exist_ok=True)
save_path = "outputs"
gen_in_progress = False
wan_model = None
transformer_type = "t2v"
reload_needed = False
teardown_s = 0.0
attempts = {}
with open("models/_settings.json") as _file:
    primary_settings = json.load(_file)
KNOWN_SETTINGS = frozenset(primary_settings) | {"model_type", "mode"}


def read_models():
    found = {}
    for path in sorted([*glob.glob("defaults/*.json"), *glob.glob("finetunes/*.json")]):
        with open(path) as file:
            given = json.load(file)
        model = given.pop("model")
        base = found.get(model.get("architecture"), {})
        found[Path(path).stem] = {**base, **model, "settings": given, "path": path, "loader": read_models}
    return found


models_def = read_models()


def get_model_def(model_type):
    return models_def.get(model_type)


def get_lora_dir(model_type):
    place = os.path.join(server_config["loras_root"], models_def[model_type]["architecture"].partition("_")[0])
    os.makedirs(place, exist_ok=True)
    return place


def get_default_settings(model_type):
    """Written down at the first look, and read from there ever after."""
    path = f"settings/{model_type}_settings.json"
    if not os.path.isfile(path):
        with open(path, "w") as file:
            json.dump({**primary_settings, **models_def[model_type]["settings"]}, file)
    with open(path) as file:
        return json.load(file)


def availability(model_type):
    """WAN_ROOT_MISSING names models whose weights are not there; those that name files are looked for."""
    if model_type in os.environ.get("WAN_ROOT_MISSING", "").split(","):
        return "missing"
    files = [os.path.basename(url) for url in models_def[model_type].get("URLs", []) if url.startswith("http")]
    found = [download.located(file, checkpoints_paths) is not None for file in files]
    return "available" if all(found) else "partial" if any(found) else "missing"


class Model:
    _interrupt = False


def release_model():
    global wan_model, reload_needed
    written("release")
    if os.environ.get("WAN_ROOT_KEEPS"):
        return
    wan_model = None
    reload_needed = True


def load_model(model_type, words, send_cmd, orders):
    global wan_model, transformer_type, reload_needed
    if wan_model is not None and model_type == transformer_type and not reload_needed:
        return
    release_model()
    send_cmd("status", f"Loading model {models_def[model_type]['name']}...")
    transformer_type = None
    if "@missing" in words:
        download.fetch_missing("DeepBeepMeep/Wan2.1", "pose", ["dw-ll_ucoco_384.onnx"], checkpoints_paths)
    if "@folder" in words:
        download.fetch_missing("DeepBeepMeep/Wan2.1", "pyannote", [], checkpoints_paths)
    if "@library" in words:
        from huggingface_hub import LocalEntryNotFoundError, hf_hub_download

        try:
            hf_hub_download("openai/clip", "added_tokens.json")
        except LocalEntryNotFoundError:
            print("no added tokens")
    for url in models_def[model_type].get("URLs", []):
        if url.startswith("http") and download.located(os.path.basename(url), checkpoints_paths) is None:
            download.download_file(url, os.path.join(checkpoints_paths[0], os.path.basename(url)))
    if "@kill-load" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(orders["load_s"])  # nothing interrupts it
    first = attempts.setdefault("oom", 0) == 0
    attempts["oom"] += "@oom-once" in words
    if "@oom-b" in words or ("@oom-once" in words and first):
        raise RuntimeError(OOM)
    wan_model, transformer_type, reload_needed = Model(), model_type, False
    written("load", model=model_type)
    send_cmd("status", "Model loaded")
    send_cmd("refresh_models", str(time.time()))


def is_edit(settings):
    return str(settings.get("mode", "")).startswith("edit_")


def validate_task(task, state):
    """The settings with the defaults of the model, or a sentence."""
    given = task["params"]
    if is_edit(given):
        if not os.path.isfile(given["video_source"]):
            return None, "Selected video or image file is missing"
        if given["temporal_upsampling"] not in ("", "rife2", "rife4"):
            return None, f"Unknown temporal upsampling mode: {given['temporal_upsampling']}"
        return {**primary_settings, **given}, ""
    model = models_def[given["model_type"]] if given["model_type"] in models_def else None
    settings = {**primary_settings, **model.get("settings"), **given}
    prompt = settings["prompt"]
    if not prompt.strip():
        return None, "Prompt cannot be empty"
    if settings["multi_prompts_gen_type"] != "FG" and "\n\n" in prompt:
        return None, "With this mode each paragraph is a generation of its own"
    if settings["image_guide"] and not settings["image_mode"]:
        return None, "You must provide a Control Video"
    missing = [path for path in settings["activated_loras"] if not os.path.isfile(path)]
    if missing:
        return None, f"The following Loras files are missing or invalid: {missing}"
    if settings["image_mode"] == 0 and model.get("image_outputs"):
        settings["image_mode"] = 1
    return settings, ""


def generate_media(task, send_cmd, *, state, prompt="", model_type="", mode="", **settings):
    global teardown_s
    words = prompt.split()
    teardown_s = 0.2 if "@late-teardown" in words else 0.0
    orders = {name: float(value) for name, value in NUMBERS.items()}
    for word in words:
        name, equals, value = word.removeprefix("@").partition("=")
        if equals and name in orders:
            orders[name] = float(value)
    if mode:
        return edit(send_cmd, state, settings)
    written("task", model=model_type, settings={"prompt": prompt, "model_type": model_type, **settings})
    if settings["override_attention"] not in ("", "sdpa"):
        send_cmd("info", f"Attention mode {settings['override_attention']} is not supported")
        return True
    width, height = settings["resolution"].split("x")
    width, height = int(width), int(height)
    for key in ATTACHMENT_KEYS:
        for path in settings.get(key) if isinstance(settings.get(key), list) else [settings.get(key)]:
            if path and not os.path.isfile(path):
                raise FileNotFoundError(2, "No such file or directory", path)
    load_model(model_type, words, send_cmd, orders)
    for path in settings["activated_loras"]:
        with open(path, "rb") as file:
            if file.read()[-1:] == b"\xff":  # as if its last tensor made no sense
                raise RuntimeError("Error while deserializing: InvalidHeaderDeserialization")
    if not sampled(words, orders, send_cmd, state):
        return False
    if "@no-file" in words:
        return True
    return decoded(words, model_type, settings, (width, height), send_cmd, state)


def sampled(words, orders, send_cmd, state):
    """Whether all steps were done."""
    gen, steps = state["gen"], int(orders["steps"])
    wan_model._interrupt = False
    gen["progress_phase"] = ("encoding_text", -1)
    send_cmd("progress", [(0, steps), "Encoding Prompt"])
    gen["progress_phase"] = ("inference", 0)  # before that event is handled, mostly
    if "@noise" in words:
        os.write(1, b'{"is": "ended", "success": true}\n')
        print("printed in a job")
    if "@many" in words:
        for number in range(5000):
            print(f"line {number} " + "x" * 60)
            send_cmd("progress", [(0, steps), "Denoising"])
    for step in range(1, steps + 1):
        if gen["abort"] and "@deaf" not in words:
            send_cmd("progress", [(None, None), "Aborting"])
            if "@cancel-and-fail" in words:
                send_cmd("error", "the tokenizer was interrupted")
            send_cmd("output")
            return False
        time.sleep(orders["step_s"])
        if step == 2:
            in_second_step(words, orders, send_cmd)
            if errors_said(words, send_cmd):
                return False
        send_cmd("progress", [(step, steps), "Denoising"])
        send_cmd("preview", "bad" if "@orphan" in words else step)
        if "@orphan" in words:
            LATER.wait(orders["orphan_s"])
    return True


def in_second_step(words, orders, send_cmd):
    if "@kill-step" in words:
        os.kill(os.getpid(), signal.SIGKILL)
    if "@silent" in words:
        LATER.wait(60)
    if "@bad-word" in words:  # as what has found the descriptor could write
        for name in os.listdir("/proc/self/fd"):
            place = f"/proc/self/fd/{name}"
            if int(name) > 2 and os.path.exists(place) and os.readlink(place).startswith("socket:"):
                os.write(int(name), b'{"is": "gibberish"}\n')


def errors_said(words, send_cmd):
    if "@oom-a" in words:
        print("Traceback (most recent call last):\n  in generate\ntorch.OutOfMemoryError: " + OOM)
        send_cmd("error", UNSUFFICIENT.format("VRAM") + "you should therefore reduce the video resolution.")
    elif "@oom-a-ram" in words:
        print("torch.AcceleratorError: CUDA error: out of memory")
        send_cmd("error", UNSUFFICIENT.format("RAM") + "/ or Reserved RAM allocation should be reduced.")
    elif "@oom-c" in words:
        print("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        send_cmd("error", generic("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."))
    elif "@boom" in words:
        print("ValueError: boom")
        send_cmd("error", generic("boom"))
    elif "@cuda-error" in words:
        print("torch.AcceleratorError: CUDA error: an illegal memory access was encountered")
        send_cmd("error", generic("CUDA error: an illegal memory access was encountered"))
    else:
        return False
    return True


def generic(what):
    return repr(
        "The generation of the video has encountered an error, please check your terminal for more information. "
        f"'{what}'"
    )


def decoded(words, model_type, settings, size, send_cmd, state):
    state["gen"]["progress_phase"] = ("decoding", -1)
    send_cmd("progress", [(None, None), "VAE Decoding"])
    model = models_def[model_type]
    files = state["gen"]["file_list"]
    block = model.get("vae_block_size", 16)
    width, height = (max(block, side // block * block) for side in size)
    if settings["image_mode"]:
        for number in range(max(1, int(settings["batch_size"]))):
            path = free_name(settings, number, ".png")
            write_image(path, width, height, settings["seed"] + number)
            files.append(path)
    else:
        fps = Fraction(str(settings["force_fps"] or model.get("fps", 16)))
        frames = int(settings["video_length"])
        windows = 3 if "@windows" in words else 1
        for window in range(1, windows + 1):
            path = free_name(settings, window, ".mp4")
            if "@kill-decode" in words:
                Path(path).write_bytes(b"half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            write_video(path, width, height, frames * window // windows, fps, settings["seed"])
            if window > 1 and not server_config["keep_intermediate_sliding_windows"]:
                files.pop()
            files.append(path)
    misplace(words, files)
    for path in files:
        print(f"New file saved to Path: {path}")
    send_cmd("output")
    written("done", model=model_type, files=files)
    return True


def misplace(words, files):
    if "@link" in words:
        os.rename(files[0], files[0] + ".real")
        os.symlink("/etc/hostname", files[0])
    if "@others-file" in words:
        files[0] = os.path.join(ROOT, "wgp.py")


def free_name(settings, number, ending):
    stem = settings["output_filename"] or f"result_{settings['seed']}_{number}"
    path, taken = os.path.join(save_path, stem + ending), 1
    while os.path.exists(path):
        taken += 1
        path = os.path.join(save_path, f"{stem}({taken}){ending}")
    return path


def color(seed, frame=0):
    return (seed * 37 % 200 + 20, (seed * 91 + frame * 5) % 200 + 20, frame * 11 % 200 + 20)


def write_image(path, width, height, seed):
    from PIL import Image

    Image.new("RGB", (width, height), color(seed)).save(path)


def write_video(path, width, height, frames, fps, seed):
    import av
    from PIL import Image

    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = av.VideoFrame.from_image(Image.new("RGB", (width, height), color(seed, number)))
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))


def generate_preview(payload):
    from PIL import Image

    if payload == "bad":
        raise RuntimeError("cannot decode the latents of a preview")
    return Image.new("RGB", (120, 200), (payload * 9 % 255, 0, 0))


def edit(send_cmd, state, settings):
    """Postprocessing: a copy, with as many frames as asked for, beside nothing else in the job's directory."""
    import av

    times = {"": 1, "rife2": 2, "rife4": 4}[settings["temporal_upsampling"]]
    source = Path(settings["video_source"])
    target = os.path.join(save_path, f"{source.stem}_post{source.suffix}")
    with av.open(str(source)) as media:
        stream = media.streams.video[0]
        count = sum(1 for _ in media.decode(stream))
        width, height, fps = stream.width, stream.height, stream.average_rate or 16
    if source.suffix == ".png":
        write_image(target, width, height, 1)
    else:
        write_video(target, width, height, (count - 1) * times + 1, Fraction(fps) * times, 1)
    state["gen"]["file_list"].append(target)
    written("edit", file=str(source))
    send_cmd("output")
    return True
