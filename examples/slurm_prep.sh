#!/bin/sh
# 64 parts, each on 16 cores: sbatch --array=1-64 --cpus-per-task=16 examples/slurm_prep.sh SRC OUT
srun s2f prep audio "$1" "$2" --quiet --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
