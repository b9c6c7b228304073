# One image for every role of a kind cluster, or with INSTALL the image of one role: its extra and nothing else.
# docker build --build-arg INSTALL="--extra gateway" --build-arg PACKAGES= --tag tandem.dev/gateway:0.1.0 .
FROM python:3.11-slim-bookworm AS build
ARG INSTALL="--group pod"
RUN pip install --no-cache-dir uv==0.13.9
WORKDIR /build
COPY pyproject.toml uv.lock README.md LICENSE ./
ENV UV_PROJECT_ENVIRONMENT=/opt/tandem/venv UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never
RUN uv sync --frozen --no-default-groups --no-install-project $INSTALL
COPY . .
RUN uv sync --frozen --no-default-groups --no-editable $INSTALL

FROM python:3.11-slim-bookworm
# A C compiler for serving pods: on GPUs triton compiles the launcher of each kernel when it is first used, and on CPUs
# the native engine compiles its kernels for the machine at hand.
ARG PACKAGES="gcc libc6-dev"
RUN if [ -n "$PACKAGES" ]; then \
    apt-get update && apt-get install --yes --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin tandem
COPY --from=build /opt/tandem/venv /opt/tandem/venv
ENV PATH=/opt/tandem/venv/bin:$PATH PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 10001:10001
WORKDIR /tmp
