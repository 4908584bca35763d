# One process on one node: preprocess, evaluate, score, and each job of a table.
exec srun --nodes=1 --ntasks=1 "${srun_options[@]}" "${inside[@]}" "$python" -m "${module[@]}"
