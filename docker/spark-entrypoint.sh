#!/usr/bin/env bash
# What Spark on Kubernetes calls in a container: `driver ARGUMENTS…` or `executor`; anything else is run as it stands.
# The SPARK_* variables are those that Spark's own images are given.
set -euo pipefail

case "${1:-}" in
  driver)
    shift
    set -- "$SPARK_HOME/bin/spark-submit" \
      --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" --deploy-mode client "$@"
    ;;
  executor)
    # The JVM's options come as SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, …, and may hold spaces.
    options=()
    number=0
    while name=SPARK_JAVA_OPT_$number && [[ -n "${!name+set}" ]]; do
      options+=("${!name}")
      number=$((number + 1))
    done
    classpath="${SPARK_CONF_DIR:-$SPARK_HOME/conf}:$SPARK_HOME/jars/*"
    for more in "${HADOOP_CONF_DIR:-}" "${SPARK_EXTRA_CLASSPATH:-}" "${SPARK_DIST_CLASSPATH:-}"; do
      classpath+="${more:+:$more}"
    done
    set -- java "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" -cp "$classpath" \
      org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
      --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
      --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
esac

# tini passes signals on and reaps what Python workers leave behind.
exec tini -s -- "$@"
