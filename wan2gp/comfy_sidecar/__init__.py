"""A library that knows ComfyUI and nothing of tasks."""
