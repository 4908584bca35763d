# The trainer: jobs.train and jobs.evaluate. From the checkout:
#   docker build -f docker/train.Dockerfile -t entirespace-train .
# Build arguments:
#   PIP_EXTRA_INDEX_URL   a further package index for torch, such as the one of CPU wheels that PyTorch's install page
#                         names; without it torch is the build that the default index serves, with CUDA's libraries
#   GPU                   1: FBGEMM's kernels for CUDA in place of those for a CPU; give no PIP_EXTRA_INDEX_URL then
#   REQUIREMENTS          the pinned list, a file in the checkout
FROM python:3.11-slim-bookworm

# Debian keeps one version of it at a time, so a pinned one would be gone with the next security update.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home trainer

# pip reads PIP_EXTRA_INDEX_URL from the environment, where an ARG stands while the image is built.
ARG PIP_EXTRA_INDEX_URL
ARG REQUIREMENTS=requirements.txt
ARG GPU
COPY ${REQUIREMENTS} /src/requirements.txt
# torch with what it needs itself, the rest without: requirements.txt says why.
RUN if [ "${GPU:-0}" != 0 ]; then sed -i 's/^fbgemm_gpu-cpu==/fbgemm_gpu==/' /src/requirements.txt; fi \
    && torch="$(grep '^torch==' /src/requirements.txt)" \
    && pip install --no-cache-dir --constraint /src/requirements.txt "$torch" \
    && pip install --no-cache-dir --no-deps --requirement /src/requirements.txt

COPY pyproject.toml README.md LICENSE /src/
COPY pipeline /src/pipeline
COPY training /src/training
COPY jobs /src/jobs
COPY conf /src/conf
RUN pip install --no-cache-dir --no-deps --no-build-isolation /src && rm -rf /src

WORKDIR /home/trainer
# By number, so that Kubernetes can see that it is not root.
USER 10001
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "jobs.train", "--help"]
