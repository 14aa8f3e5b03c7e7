# syntax=docker/dockerfile:1
# Serves a compiled artifact: docker build -t rusteeze .
#   docker run --rm -p 8000:8000 -e RUSTEEZE_API_KEY=… -v "$PWD/smol.rz:/model:ro" rusteeze
# The image has no compiler. Compile where you build images, or build with --build-arg EXTRAS='[compile]',
# which adds several gigabytes.

FROM python:3.11-slim AS build
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY rusteeze ./rusteeze
RUN python -m venv /opt/rusteeze && /opt/rusteeze/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.11-slim
COPY --from=build /opt/rusteeze /opt/rusteeze
RUN useradd --create-home --uid 10001 rusteeze
USER 10001
ENV PATH=/opt/rusteeze/bin:$PATH RUSTEEZE_HOST=0.0.0.0 RUSTEEZE_PORT=8000 RUSTEEZE_MODEL=/model
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD \
  ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"RUSTEEZE_PORT\"]}/health/ready', timeout=2)"]
ENTRYPOINT ["rusteeze", "serve"]
