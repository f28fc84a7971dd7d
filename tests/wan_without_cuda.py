"""A real Wan2GP on a machine without CUDA: its own code, told that there is a card, and given a model that makes black
pictures. What is shown so is the engine's threads, events and errors; nothing of what a model does.

A word of the prompt says what the model does: ``@oom-a``, ``@oom-c``, ``@boom``; ``@oom-b`` fails its load.
"""

from __future__ import annotations

import shutil
from pathlib import Path

NOT_COPIED = ("ckpts", "loras", "outputs", "settings", "venv", ".venv", "env", ".git", "__pycache__")
BEFORE = """
def _told_of_a_card():
    import torch

    class Card:
        name, total_memory, major, minor, multi_processor_count = "told", 24 << 30, 8, 9, 80

    answers = dict(
        is_available=True, device_count=1, get_device_capability=(8, 9), get_device_properties=Card, current_device=0,
        get_device_name="told", mem_get_info=(20 << 30, 24 << 30), memory_allocated=0, memory_reserved=0,
        max_memory_allocated=0, empty_cache=None, synchronize=None, reset_peak_memory_stats=None, ipc_collect=None,
    )
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *given, _answer=answer, **named: _answer)

_told_of_a_card()
"""
AFTER = '''
class _BlackModel:
    model, model2, vae, _interrupt = __import__("types").SimpleNamespace(cache=None), None, None, False

    def generate(self, *, callback, sampling_steps, height, width, frame_num, input_prompt, **others):
        self._interrupt = False
        callback(-1, None, True, override_num_inference_steps=sampling_steps)
        for step in range(sampling_steps):
            if self._interrupt:
                return None
            time.sleep(0.05)
            if "@oom-a" in input_prompt:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total")
            if "@oom-c" in input_prompt:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
            if "@boom" in input_prompt:
                raise ValueError("boom")
            callback(step, torch.zeros(16, 2, 8, 8), False)
        return torch.zeros(3, frame_num, height, width)


class _NoOffload:
    def unload_all(self):
        pass

    release = unload_all


_load_models = load_models


def load_models(model_type, override_profile=-1, output_type="video", config_id=None, **others):
    """In memory at once, and only where no file is wanted."""
    global transformer_type, loaded_profile, loaded_config
    if model_type != "t2v_1.3B":
        return _load_models(model_type, override_profile, output_type, config_id, **others)
    transformer_type = None
    time.sleep(0.5)
    transformer_type, loaded_config = model_type, config_id
    loaded_profile = compute_profile(override_profile, output_type)
    return _BlackModel(), _NoOffload()


offload.unload_loras_from_model = lambda *given, **named: None
'''


def told_of_a_card(checkout: Path, place: Path) -> Path:
    """A copy of a checkout whose program is changed; weights are not copied."""
    shutil.copytree(checkout, place, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    program = (place / "wgp.py").read_text()
    first, last = "import torch._logging as tlog", 'if __name__ == "__main__":'
    assert first in program and last in program, "the engine's program is another now"
    head, _, tail = program.replace(first, f"{BEFORE}\n{first}", 1).rpartition(last)
    (place / "wgp.py").write_text(f"{head}{AFTER}\n\n{last}{tail}")
    return place
