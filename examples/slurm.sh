#!/bin/bash
# Eight workers on as many nodes as Slurm gives; the center runs elsewhere, where it outlives the job:
#
#   hooke certificate keys --host center.example.org
#   hooke center --listen 0.0.0.0:29400 --out runs/center --certificate keys/server.pem --key keys/server.key \
#     --token-file keys/token
#   sbatch examples/slurm.sh train.py --its-own-flags
#
#SBATCH --job-name=hooke
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

export HOOKE_CENTER=${HOOKE_CENTER:-grpc+tls://center.example.org:29400}
export HOOKE_AUTHORITY=${HOOKE_AUTHORITY:-$PWD/keys/ca.pem}
HOOKE_TOKEN=${HOOKE_TOKEN:-$(< keys/token)}
export HOOKE_TOKEN
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# --kill-on-bad-exit=0: a worker that dies takes no other with it
srun --kill-on-bad-exit=0 python "$@"
