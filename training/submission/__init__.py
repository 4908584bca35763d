"""jobs.submit: the chain as batch jobs of a cluster.

Read `settings`, then `plan` (which stages of which seeds), `slurm_scripts` and `slurm` (sbatch), `pods`,
`manifests` and `spark_manifests` (Kubernetes). `run_stage` is what a batch job calls on its node.
"""
