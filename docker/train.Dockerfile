# The trainer: jobs.train, jobs.evaluate, jobs.export; with Java also jobs.score. `make image-train`, `image-train-cuda`
# and `image-score` build it from the checkout (docs/clusters.md).
# Build arguments:
#   BASE                  an image with Python 3.11 as python3, and apt; pin it by digest: NAME@sha256:…
#   GPU                   1: FBGEMM's kernels for CUDA in place of those for a CPU; give no PIP_EXTRA_INDEX_URL then
#   PACKAGES              further packages of Debian: openjdk-17-jre-headless for Spark
#   PIP_EXTRA_INDEX_URL   a further package index for torch, such as the one of CPU wheels that PyTorch's install page names
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build

# The image of Debian itself has Python without pip and venv.
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv'; then \
        apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi

# pip reads PIP_… from the environment, where an ARG stands while the image is built.
ARG PIP_EXTRA_INDEX_URL
ARG GPU
COPY requirements.txt /src/
# torch with what it needs itself, the rest without: requirements.txt says why. CUDA's own libraries are packages of torch.
RUN python3 -m venv /opt/entirespace \
    && if [ "${GPU:-0}" != 0 ]; then sed -i 's/^fbgemm_gpu-cpu==/fbgemm_gpu==/' /src/requirements.txt; fi \
    && torch="$(grep '^torch==' /src/requirements.txt)" \
    && /opt/entirespace/bin/pip install --no-cache-dir --constraint /src/requirements.txt "$torch" \
    && /opt/entirespace/bin/pip install --no-cache-dir --no-deps --requirement /src/requirements.txt

COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
COPY training /src/training
COPY jobs /src/jobs
COPY conf /src/conf
# What only a compiler or a test reads is a fifth of the image. Without Java, Spark's jars are of no use.
ARG PACKAGES=
RUN /opt/entirespace/bin/pip install --no-cache-dir --no-deps --no-build-isolation /src \
    && site="$(echo /opt/entirespace/lib/python3*/site-packages)" \
    && rm -rf "$site"/torch/include "$site"/torch/share/cmake "$site"/torch/test "$site"/pyarrow/include "$site"/pip "$site"/pip-* \
    && find "$site" -type d -name tests -path '*/sk*' -prune -exec rm -rf {} + \
    && find "$site" -name '*.a' -delete \
    && case "$PACKAGES" in *jre* | *jdk*) ;; *) rm -rf "$site"/pyspark/jars ;; esac

FROM ${BASE}
ARG PACKAGES=
# Debian keeps one version of these at a time, so a pinned one would be gone with the next security update.
# hadolint ignore=DL3008,SC2086
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini libgomp1 $PACKAGES \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home entirespace

COPY --from=build /opt/entirespace /opt/entirespace
COPY docker/check_image.py tests/support/tiny_dataset.py /opt/check/
ENV PATH=/opt/entirespace/bin:$PATH

WORKDIR /home/entirespace
# By number, so that Kubernetes can see that it is not root.
USER 10001
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "jobs.train", "--help"]
# Once a day: a job has better use for its cores. `make check-image IMAGE=NAME` runs it when you want.
HEALTHCHECK --interval=24h --timeout=5m --retries=1 CMD ["python", "/opt/check/check_image.py"]
