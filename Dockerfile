# syntax=docker/dockerfile:1
#
#   docker build --target worker -t wan2gp .               a worker without ComfyUI
#   docker build --target worker-comfy -t wan2gp-comfy .   the same with ComfyUI and VideoHelperSuite (also without --target)
#
# The worker reads its settings from the environment (SUPABASE_URL, DATABASE_URL, WORKER_ID, COMFY_…): docs/configuration.md.
# Its logs, outputs and state are in /data. On RunPod a network volume is mounted over /workspace: nothing that the image
# brings is there.

ARG BASE_IMAGE=runpod/pytorch:2.4.0-py3.11-cuda12.4.1-devel-ubuntu22.04


FROM ${BASE_IMAGE} AS worker

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# tini reaps what sshd and its sessions leave, so that the worker has only its own children.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_*

# An environment of its own: nothing that it needs can clash with the base image's Python, or with ComfyUI.
COPY setup.cfg pyproject.toml README.md LICENSE /opt/wan2gp/source/
COPY wan2gp /opt/wan2gp/source/wan2gp
RUN python3.11 -m venv /opt/wan2gp/venv \
    && /opt/wan2gp/venv/bin/python -m pip install --no-cache-dir "/opt/wan2gp/source[embedded]" \
    && ln -s /opt/wan2gp/venv/bin/wan2gp-supervisor /opt/wan2gp/venv/bin/wan2gp-ctl /usr/local/bin/ \
    && wan2gp-supervisor --version

# Any user may write there: `docker run --user 1000` needs no other preparation.
RUN install -d -m 1777 /data /workspace
COPY --chmod=755 docker/start.sh /usr/local/bin/wan2gp-start

ENV WAN2GP_DATA_DIR=/data \
    PYTHONUNBUFFERED=1
VOLUME /data
WORKDIR /data

LABEL org.opencontainers.image.title="wan2gp" \
      org.opencontainers.image.description="A GPU worker: claims rows of a tasks table, runs each in a sandboxed process, publishes the result" \
      org.opencontainers.image.licenses="MIT"

# Healthy: the supervisor answers, and would take a task: its disk has space, its GPU works, nobody drains it.
# A database that is away does not make it sick: it waits for it, and restarting helps nobody.
HEALTHCHECK --interval=30s --timeout=15s --start-period=90s --retries=3 CMD ["wan2gp-ctl", "ready"]
# Ten seconds, which `docker stop` gives, are enough: stop.grace_s is 8.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "-s", "--", "wan2gp-start"]
CMD ["wan2gp-supervisor"]


FROM worker AS worker-comfy

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

ARG COMFYUI_REPOSITORY=https://github.com/comfyanonymous/ComfyUI.git
# 0.3.64
ARG COMFYUI_COMMIT=a125cd84b054a57729b5eecab930ca9408719832
ARG VHS_REPOSITORY=https://github.com/Kosinkadink/ComfyUI-VideoHelperSuite.git
# 1.7.9
ARG VHS_COMMIT=4ee72c065db22c9d96c2427954dc69e7b908444b

# What OpenCV, a requirement of VideoHelperSuite, loads.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends ffmpeg git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

RUN git init --quiet /opt/ComfyUI \
    && git -C /opt/ComfyUI fetch --quiet --depth 1 "${COMFYUI_REPOSITORY}" "${COMFYUI_COMMIT}" \
    && git -C /opt/ComfyUI checkout --quiet FETCH_HEAD \
    && git init --quiet /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite \
    && git -C /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite fetch --quiet --depth 1 "${VHS_REPOSITORY}" "${VHS_COMMIT}" \
    && git -C /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite checkout --quiet FETCH_HEAD

# The worker finds this environment by its place. It sees the base image's torch, which fits its CUDA, and installs the rest.
RUN python3.11 -m venv --system-site-packages /opt/ComfyUI/venv \
    && /opt/ComfyUI/venv/bin/python -m pip install --no-cache-dir \
        --requirement /opt/ComfyUI/requirements.txt \
        --requirement /opt/ComfyUI/custom_nodes/ComfyUI-VideoHelperSuite/requirements.txt

# A ComfyUI that does not start, or that starts without VideoHelperSuite, is no image.
RUN mkdir -p /tmp/first/user \
    && /opt/ComfyUI/venv/bin/python /opt/ComfyUI/main.py --cpu --quick-test-for-ci --disable-auto-launch \
        --temp-directory /tmp/first --user-directory /tmp/first/user --database-url sqlite:////tmp/first/db 2>&1 \
        | tee /tmp/first/log \
    && ! grep --fixed-strings "(IMPORT FAILED)" /tmp/first/log \
    && rm -rf /tmp/first

# Where the documentation has it, for whoever looks there. A volume that is mounted over /workspace hides only this link.
RUN ln -s /opt/ComfyUI /workspace/ComfyUI

ENV COMFY_PATH=/opt/ComfyUI
