# The Spark side: driver and executors of jobs.simulate and jobs.preprocess, and the image that
# spark.kubernetes.container.image names. From the checkout:
#   docker build -f docker/spark.Dockerfile -t entirespace-spark .
FROM python:3.11-slim-bookworm

# Debian keeps one version of these at a time, so a pinned one would be gone with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 185 --create-home spark

COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
COPY training /src/training
COPY jobs /src/jobs
COPY conf /src/conf
RUN pip install --no-cache-dir /src && rm -rf /src

# Kubernetes mounts Spark's configuration at /opt/spark/conf, so the home is a directory of its own, around PySpark's parts.
RUN mkdir -p /opt/spark/conf /opt/spark/work-dir \
    && pyspark="$(python -c 'import importlib.util as u; print(u.find_spec("pyspark").submodule_search_locations[0])')" \
    && for part in bin sbin jars python; do ln -s "$pyspark/$part" "/opt/spark/$part"; done \
    && chown spark /opt/spark/work-dir
COPY --chmod=755 docker/spark-entrypoint.sh /opt/spark-entrypoint.sh

ENV SPARK_HOME=/opt/spark \
    PYSPARK_PYTHON=/usr/local/bin/python3 \
    PYSPARK_DRIVER_PYTHON=/usr/local/bin/python3
WORKDIR /opt/spark/work-dir
# By number, so that Kubernetes can see that it is not root.
USER 185
ENTRYPOINT ["/opt/spark-entrypoint.sh"]
CMD ["python", "-m", "jobs.preprocess", "--help"]
