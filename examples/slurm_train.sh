#!/bin/sh
# Two nodes of 8 GPUs: sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 --requeue --signal=TERM@120 \
#     examples/slurm_train.sh voice PACK --face-encoder vgg.safetensors --face-decoder decoder.safetensors --preset paper -o RUN
# RUN is on storage that the nodes share. The same line goes on, also after the time that a job may take.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" --max-restarts 3 --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" -m s2f train "$@"
