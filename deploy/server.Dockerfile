# The server in a container. From the top of a checkout:
#   docker build -f deploy/server.Dockerfile -t qtl-server .
#   docker run --rm -p 5555:5555 -v "$PWD/bundle/server:/server:ro" -v "$PWD/keys:/keys:ro" qtl-server
# With a GPU add `--gpus all` to `docker run`, and build with --build-arg TORCH="torch" for a CUDA build.
FROM python:3.12-slim

# Alone and pinned first: a looser request may bring gigabytes of CUDA.
ARG TORCH="torch==2.13.0"
RUN pip install --no-cache-dir "${TORCH}"

COPY . /source
RUN pip install --no-cache-dir "/source[server]" && rm -rf /source

# Keys are files of mode 0600: run with `--user $(id -u)` where another user owns them.
RUN useradd --uid 1000 --no-create-home qtl
USER qtl
ENV OMP_WAIT_POLICY=passive
EXPOSE 5555

# qtl-server ends after the current answer on SIGTERM, which is what `docker stop` sends.
ENTRYPOINT ["qtl-server"]
CMD ["serve", "/server", "--bind", "tcp://*:5555", "--keys", "/keys"]
