#!/bin/sh
# 64 parts, each on 16 cores: sbatch --array=1-64 --cpus-per-task=16 examples/slurm_prep.sh SRC OUT
# Parts again, by their numbers: --array=3,17. SLURM's own count would then be 2 and not 64.
srun s2f prep audio "$1" "$2" --quiet --shard "$SLURM_ARRAY_TASK_ID/64"
