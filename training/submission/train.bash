# One torchrun a node; they meet on the first. The status of
# training.distributed.launch_ranks decides what happens when they end:
#   0             the stage is noted, and what depends on it starts
#   75, >= 128    stopped by a signal, a lost rank or host, a killed rank: the job queues up again, and training resumes
#   2 and others  a mistake, or a bug: the job fails
# A preempted job and a lost node queue up again by Slurm itself (--requeue).
for command in scontrol scancel srun; do
  command -v "$command" >/dev/null || { echo "error: $command is not on the PATH of $(hostname); jobs of Slurm need it." >&2; exit 2; }
done
restarts=${SLURM_RESTART_COUNT:-0}
run_stage=(srun --nodes=1 --ntasks=1 "${srun_options[@]}" "${inside[@]}" "$python" -m training.submission.run_stage)

status=0
"${run_stage[@]}" begin "${stage[@]}" || status=$?
((status != 3)) || exit 0 # it is done already
((status == 0)) || exit "$status"

names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
mapfile -t hosts <<<"$names"
addresses=() # by which Slurm itself reaches the nodes
for host in "${hosts[@]}"; do
  described=$(scontrol --oneliner show node "$host")
  [[ $described =~ NodeAddr=([^[:space:]]+) ]] || { echo "error: scontrol knows no address of node $host." >&2; exit 2; }
  addresses+=("${BASH_REMATCH[1]}")
done
((port > 0)) || port=$((20000 + SLURM_JOB_ID % 10000))

# Of several nodes the first serves a store at $port, unauthenticated (docs/security.md). c10d runs code which it finds in
# its store, static does not. On one node nothing listens beyond loopback.
if ((${#hosts[@]} > 1)); then
  rendezvous_options=(--rdzv-backend="$rendezvous" --rdzv-endpoint="${addresses[0]}:$port")
else
  rendezvous_options=(--rdzv-backend=c10d --rdzv-conf=store_type=file)
  export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
fi
# Each node has to say which it is, and only srun's tasks know.
# shellcheck disable=SC2016
of_node='addresses=($0) && export PET_NODE_RANK=$SLURM_NODEID PET_LOCAL_ADDR=${addresses[SLURM_NODEID]}
[[ $1 != c10d ]] || export PET_RDZV_CONF=is_host=$([[ $SLURM_NODEID == 0 ]] && echo true || echo false)
shift && exec "$@"'
[[ ${#hosts[@]} -gt 1 ]] || rendezvous=in-a-file

requeue=false
# scancel without --batch reaches the job's steps, not this shell.
trap 'trap "" USR1
  requeue=true
  echo "The time is nearly up: the training is stopped, and the job queues up again." >&2
  scancel --signal=TERM "$SLURM_JOB_ID"' USR1

# --wait: where a node has ended, the others have so long to notice and to say why.
srun --nodes="${#hosts[@]}" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 "${srun_options[@]}" "${inside[@]}" \
  bash -c "$of_node" "${addresses[*]}" "$rendezvous" "$python" -m training.distributed.launch_ranks \
  --nnodes="${#hosts[@]}" --nproc-per-node="$ranks" --max-restarts=0 \
  "${rendezvous_options[@]}" --rdzv-id="$SLURM_JOB_ID-$restarts" -m "${module[@]}" &
step=$!

status=0
wait "$step" || status=$?
if [[ $requeue == true ]]; then # it was the signal that ended that wait, so wait for the step itself
  status=0
  wait "$step" || status=$?
fi

if ((status == 0)); then
  exec "${run_stage[@]}" end "${stage[@]}"
fi
if [[ $requeue == true ]] || ((status == 75 || status >= 128)); then
  if ((restarts >= max_requeues)); then
    echo "error: The job has queued up again $restarts times (slurm.max_requeues); submit it once more to resume." >&2
    exit "$status"
  fi
  echo "The training ended with status $status; the job queues up again, and resumes from the newest checkpoint." >&2
  scontrol requeue "$SLURM_JOB_ID"
  sleep 60 # until Slurm ends this shell
fi
exit "$status"
