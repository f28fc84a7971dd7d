#!/bin/sh
# What the image starts: makes the machine fit for the worker, then becomes the command (CMD, or what RunPod's template
# gives instead). No secret is written anywhere: an ssh session learns only where the data directory is.
set -eu

SSH_ETC=${WAN2GP_SSH_ETC:-/etc/ssh}
SSHD=${WAN2GP_SSHD:-/usr/sbin/sshd}
ENVIRONMENT=${WAN2GP_ENVIRONMENT_FILE:-/etc/environment}

note() { echo "wan2gp-start: $*" >&2; }

# `docker run --user 1000` gives a user that the image does not know: no name, and / or another's folder as home.
own_home() {
    if [ ! -w "${HOME:-/}" ] || [ "${HOME:-/}" = / ]; then
        HOME=$WAN2GP_DATA_DIR/home
        mkdir -p "$HOME"
        export HOME
    fi
    USER=$(id -un 2>/dev/null) || USER=wan2gp
    LOGNAME=$USER
    export USER LOGNAME
}

# RunPod puts the owner's public key into PUBLIC_KEY and expects an sshd. Trouble with it must not cost any task.
ssh_for_the_owner() {
    mkdir -p "$HOME/.ssh" /run/sshd
    touch "$HOME/.ssh/authorized_keys"
    grep -qxF "$PUBLIC_KEY" "$HOME/.ssh/authorized_keys" || echo "$PUBLIC_KEY" >>"$HOME/.ssh/authorized_keys"
    chmod 700 "$HOME/.ssh"
    chmod 600 "$HOME/.ssh/authorized_keys"
    ls "$SSH_ETC"/ssh_host_*_key >/dev/null 2>&1 || ssh-keygen -A
    grep -qxF "WAN2GP_DATA_DIR=$WAN2GP_DATA_DIR" "$ENVIRONMENT" 2>/dev/null ||
        echo "WAN2GP_DATA_DIR=$WAN2GP_DATA_DIR" >>"$ENVIRONMENT"
    # Without the worker's variables: every ssh session would inherit the service key.
    env -i PATH="$PATH" "$SSHD"
}

: "${WAN2GP_DATA_DIR:=/data}"
export WAN2GP_DATA_DIR
if ! mkdir -p "$WAN2GP_DATA_DIR" || [ ! -w "$WAN2GP_DATA_DIR" ]; then
    note "cannot write to $WAN2GP_DATA_DIR as user $(id -u): mount a folder of that user there, or set WAN2GP_DATA_DIR"
    exit 2
fi
own_home
if [ -n "${PUBLIC_KEY:-}" ]; then
    if [ "$(id -u)" -ne 0 ] || [ ! -x "$SSHD" ]; then
        note "PUBLIC_KEY is set, but sshd needs root and $SSHD: going on without ssh"
    else
        (ssh_for_the_owner) || note "sshd did not start: going on without ssh"
    fi
fi
if [ "${1:-}" = "" ] || [ "${1#-}" != "$1" ]; then
    set -- wan2gp-supervisor "$@"
fi
exec "$@"
