# The two commands of a newcomer are `make demo` and `make test`; `make help` lists the rest.
.DEFAULT_GOAL := help
PY := .venv/bin/python
CLUSTER ?= auto
MODEL ?=
# A machine with a GPU has a Python with torch of its own.
GPU_PY ?= python3

export UV_PYTHON_DOWNLOADS := never
# Trust what the machine trusts: a company's own authority stands in its store, not in uv's.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS ?= 1
endif

.PHONY: help env env-vllm demo demo-down test test-fast test-unit test-cluster test-node test-gpu test-kwok test-long lint format \
	generate gpu-check bench-engine bench-gateway bench-gpu bench-gpu-pair bench-http bench-loads bench-long-prompt bench-loop \
	bench-operator bench-overlap bench-prefix bench-residency bench-timeline

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

env: ## makes .venv from uv.lock (needs only Python 3.11+)
	@tools/environment.sh

env-vllm: env ## makes vLLM's CPU build for the benchmarks beside it, in your cache folder (6 GB)
	@tools/environment_vllm.sh

demo: env ## a cluster, the chart, two Models and streamed answers; CLUSTER=node|kind|current, MODEL=hf://org/name
	@$(PY) -m tandem_cli demo up --cluster $(CLUSTER) $(if $(MODEL),--model $(MODEL))

demo-down: env ## ends the demo's cluster and leaves nothing behind
	@$(PY) -m tandem_cli demo down --cluster $(CLUSTER)

test: env ## lint, unit, cluster and node tests, each with its seconds
	@$(PY) tools/tiers.py lint fast unit cluster node

test-fast: env ## tests without torch and without a cluster, about 10 s
	@$(PY) tools/tiers.py fast

test-unit: env ## all unit tests
	@$(PY) tools/tiers.py fast unit

test-cluster: env ## tests against a real control plane
	@$(PY) tools/tiers.py cluster

test-node: env ## tests on a cluster with a node (Linux, root)
	@$(PY) tools/tiers.py node

test-gpu: ## tests that need a CUDA device, with the python that is on the PATH (GPU_PY=...)
	@PYTHONPATH=api:server $(GPU_PY) -m pytest -c tests/gpu/pytest.ini --rootdir . -q tests/gpu

bench-gpu: ## the engine on a GPU against the GPU's own limits, its plain loop and transformers (GPU_PY=...)
	@PYTHONPATH=api:server $(GPU_PY) tools/record.py gpu $(GPU_PY) bench/gpu.py

gpu-check: ## tests and benchmarks of a GPU within ten minutes, without a network; see tests/gpu/README.md (GPU_PY=...)
	@$(GPU_PY) tools/gpu_check.py

test-kwok: env ## 200 Models on fake nodes, and a kill -9 after every write of the operator
	@TANDEM_KWOK_MODELS=200 TANDEM_KILLS=all $(PY) -m pytest -q tests/cluster/test_operator_scale.py \
		tests/cluster/test_operator_killed.py --timeout=600

test-long: env ## property tests with many seeds
	@TANDEM_SEEDS=200 $(PY) tools/tiers.py fast unit

lint: env ## format, lint, types, import rules
	@$(PY) tools/tiers.py lint

format: env ## formats the code
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

generate: env ## makes the CRDs, the reference page and the plain manifests from the types and the chart
	@$(PY) tools/generate.py

bench-overlap: env ## the overlapped loop against the plain one
	@$(PY) tools/record.py overlap $(PY) bench/overlap.py

bench-prefix: env ## the second turn of a long chat against its first, with the prefix cache and without
	@$(PY) tools/record.py prefix $(PY) bench/prefix.py

bench-operator: env ## the operator with 200 Models on fake nodes against a process that only watches
	@$(PY) tools/record.py operator $(PY) bench/operator_at_scale.py

bench-loads: env ## what a load costs the models that serve beside it
	@$(PY) tools/record.py loads $(PY) bench/loads.py

bench-loop: env ## both loops on a device of fixed step time against the ideal
	@$(PY) tools/record.py loop $(PY) bench/loop.py

bench-timeline: env ## what host and device do in each step, as a picture
	@$(PY) tools/record.py timeline $(PY) bench/timeline.py

bench-gateway: env ## calls through the gateway against direct ones
	@$(PY) tools/record.py gateway $(PY) bench/gateway.py

bench-engine: env ## our engine against transformers and, after make env-vllm, vLLM's CPU build
	@$(PY) tools/record.py engine $(PY) bench/engine.py

bench-http: env ## our pod through HTTP against vLLM's server (after make env-vllm), with Ollama's figures beside
	@$(PY) tools/record.py http $(PY) bench/engine_http.py

bench-gpu-pair: env ## two busy models in two processes on one GPU, with and without MPS
	@$(PY) tools/record.py gpu-pair $(PY) bench/gpu_pair.py

bench-residency: env ## swaps, warm switches, and warm requests on a Zipf trace against Ollama's rule
	@$(PY) tools/record.py residency $(PY) bench/residency.py

bench-long-prompt: env ## a short request while a prompt of 30,000 tokens is read, against vLLM's server
	@$(PY) tools/record.py long-prompt $(PY) bench/long_prompt.py
