#!/bin/sh
# Makes ./.venv from the lock file with nothing but Python 3.11+ on the machine; does nothing when it is up to date.
#
# uv comes from the package index (into the user's cache folder, keyed by version) unless the machine has it. The
# interpreter is the system's own where it is new enough, since pods of the development cluster use the same one.
set -eu

UV_VERSION=0.13.9
CACHE="${XDG_CACHE_HOME:-$HOME/.cache}/tandem"
cd "$(dirname "$0")/.."

fail() {
    printf 'tandem: %s\n' "$1" >&2
    exit 1
}

find_python() {
    for candidate in /usr/bin/python3 python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed and none was found; install it (Debian, Ubuntu: apt-get install python3)"
}

find_uv() {
    if command -v uv >/dev/null 2>&1 && [ "$(uv --version | cut -d' ' -f2)" = "$UV_VERSION" ]; then
        command -v uv
        return
    fi
    folder="$CACHE/tools/uv-$UV_VERSION"
    if [ ! -x "$folder/bin/uv" ]; then
        echo "tandem: fetching uv $UV_VERSION into $folder" >&2
        mkdir -p "$CACHE/tools"
        fresh="$(mktemp -d "$CACHE/tools/uv-XXXXXX")"
        install_uv "$1" "$fresh" || fail "uv could not be installed: pip or the venv module is missing and could not be \
installed, or the package index is out of reach (Debian, Ubuntu: apt-get install python3-pip)"
        # Another run may have finished first; its folder is as good as ours.
        mv -T "$fresh" "$folder" 2>/dev/null || rm -rf "$fresh"
    fi
    echo "$folder/bin/uv"
}

install_uv() {
    for python in "$1" python3; do
        if "$python" -m pip --version >/dev/null 2>&1; then
            "$python" -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --no-warn-script-location \
                --target "$2" "uv==$UV_VERSION" >&2 && return
        fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "tandem: installing the system package python3-pip, which fetches uv" >&2
        { apt-get install -qq -y python3-pip || { apt-get update -qq && apt-get install -qq -y python3-pip; }; } >/dev/null &&
            /usr/bin/python3 -m pip install --quiet --root-user-action=ignore --disable-pip-version-check --target "$2" "uv==$UV_VERSION" >&2 && return
    fi
    return 1
}

python="$(find_python)"
uv="$(find_uv "$python")"
export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300
if [ "${1:-}" = --uv ]; then
    echo "$uv"
    exit
fi
if [ ! -x .venv/bin/python ]; then
    echo "tandem: making .venv (about 5 GB, most of it torch; one or two minutes the first time)" >&2
fi
# Two runs at once must not both write .venv.
mkdir -p "$CACHE"
exec 9>"$CACHE/environment.lock"
if command -v flock >/dev/null 2>&1; then flock 9; fi
if [ -t 2 ]; then quiet=; else quiet=--quiet; fi
"$uv" sync $quiet --frozen --python "$python"
