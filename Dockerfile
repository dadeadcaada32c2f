# The server, for production: a configuration at /etc/duostore/duostore.toml is all it lacks.
# Debian-based images of Python 3.11 to 3.13 will do as the base.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY clients/python clients/python
COPY server server
RUN python -m pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels \
        ./clients/python .
RUN python -m venv --without-pip /opt/duostore \
    && python -m pip --python /opt/duostore/bin/python install --no-cache-dir --no-index \
        --find-links /wheels duostore-server

FROM ${BASE}
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin duostore
COPY --from=build /opt/duostore /opt/duostore
ENV PATH=/opt/duostore/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DUOSTORE_CONFIG=/etc/duostore/duostore.toml
WORKDIR /etc/duostore
USER 10001
# Calls and metrics, if the configuration says so: server.address = "0.0.0.0:50051".
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
# Asks 127.0.0.1:50051.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s CMD ["duostore", "health"]
ENTRYPOINT ["duostore"]
CMD ["serve"]
