"""A small CPU-only engine that speaks ComfyUI's HTTP and websocket API, for demos and tests."""
