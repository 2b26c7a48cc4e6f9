# The container image of iqgateway2mqtt, see docs/install.md#container. It uses Debian's Python, whose security updates
# come with the base image.

FROM debian:trixie-slim AS build
# No versions are pinned, because Debian's archive keeps only the newest one.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv --without-pip /opt/iqgateway2mqtt
WORKDIR /src
# The locked requirements seldom change, so this layer stays in the build cache.
COPY requirements.txt ./
RUN pip --python /opt/iqgateway2mqtt/bin/python install --no-cache-dir --no-deps --only-binary=:all: --require-hashes \
    -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY systemd ./systemd
COPY bridge ./bridge
RUN pip --python /opt/iqgateway2mqtt/bin/python install --no-cache-dir --no-deps .

FROM debian:trixie-slim
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="iqgateway2mqtt" \
      org.opencontainers.image.description="Enphase IQ Gateway to MQTT bridge, with Home Assistant discovery" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No versions are pinned, because Debian's archive keeps only the newest one.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 tzdata \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /var/log/* \
 && install -d -o 10001 -g 10001 -m 700 /var/lib/iqgateway2mqtt
COPY --from=build /opt/iqgateway2mqtt /opt/iqgateway2mqtt
ENV PATH=/opt/iqgateway2mqtt/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    BRIDGE_STATE_DIR=/var/lib/iqgateway2mqtt \
    BRIDGE_HTTP__LISTEN=127.0.0.1:8080
USER 10001:10001
VOLUME ["/var/lib/iqgateway2mqtt"]
WORKDIR /var/lib/iqgateway2mqtt
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s CMD ["iqgateway2mqtt", "health"]
ENTRYPOINT ["iqgateway2mqtt"]
CMD ["run"]
