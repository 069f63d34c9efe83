#!/bin/sh
# On 4 nodes, whole ones: sbatch --nodes=4 --ntasks-per-node=1 --exclusive examples/ray_prep.sh SRC OUT
# Without SLURM: the first line on one machine, `ray start --address HEAD:6379` on the others, then
# the last line on any of these. SRC, OUT and the working folder are on a file system of all nodes.
export RAY_USAGE_STATS_ENABLED=0
ray start --head --port 6379 --include-dashboard false
if [ "$SLURM_NNODES" -gt 1 ]; then
  srun --nodes "$((SLURM_NNODES - 1))" --ntasks "$((SLURM_NNODES - 1))" --exclude "$(hostname)" \
    ray start --address "$(hostname):6379" --block &
fi
s2f prep audio "$1" "$2" --quiet --executor ray --ray-address auto
