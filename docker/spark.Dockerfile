# The Spark side: driver and executors of jobs.simulate and jobs.preprocess, and the image that
# spark.kubernetes.container.image names. `make image-spark` builds it from the checkout (docs/clusters.md).
# Build arguments:
#   BASE   an image with Python 3.11 as python3, and apt; pin it by digest: NAME@sha256:…
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS build

# The image of Debian itself has Python without pip and venv.
# hadolint ignore=DL3008
RUN if ! python3 -c 'import ensurepip, venv'; then \
        apt-get update && apt-get install --yes --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi

COPY pyproject.toml requirements.txt README.md LICENSE /src/
COPY pipeline /src/pipeline
COPY training /src/training
COPY jobs /src/jobs
COPY conf /src/conf
RUN python3 -m venv /opt/entirespace \
    && /opt/entirespace/bin/pip install --no-cache-dir --constraint /src/requirements.txt /src \
    && rm -rf /opt/entirespace/lib/python3*/site-packages/pyarrow/include

# Kubernetes mounts Spark's configuration at /opt/spark/conf, so the home is a directory of its own, around PySpark's parts.
RUN mkdir -p /opt/spark/conf /opt/spark/work-dir \
    && pyspark="$(echo /opt/entirespace/lib/python3*/site-packages/pyspark)" \
    && for part in bin sbin jars python; do ln -s "$pyspark/$part" "/opt/spark/$part"; done

FROM ${BASE}
# Debian keeps one version of these at a time, so a pinned one would be gone with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home entirespace

COPY --from=build /opt/entirespace /opt/entirespace
COPY --from=build --chown=10001 /opt/spark /opt/spark
COPY --chmod=755 docker/spark-entrypoint.sh /opt/spark-entrypoint.sh
COPY docker/check_image.py tests/support/tiny_dataset.py /opt/check/

ENV PATH=/opt/entirespace/bin:$PATH \
    SPARK_HOME=/opt/spark \
    PYSPARK_PYTHON=/opt/entirespace/bin/python \
    PYSPARK_DRIVER_PYTHON=/opt/entirespace/bin/python
WORKDIR /opt/spark/work-dir
# By number, so that Kubernetes can see that it is not root.
USER 10001
ENTRYPOINT ["/opt/spark-entrypoint.sh"]
CMD ["python", "-m", "jobs.preprocess", "--help"]
# Once a day: a job has better use for its cores. `make check-image IMAGE=NAME` runs it when you want.
HEALTHCHECK --interval=24h --timeout=5m --retries=1 CMD ["python", "/opt/check/check_image.py"]
