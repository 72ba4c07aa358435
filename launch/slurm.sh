#!/usr/bin/env bash
# Trains on one node of a SLURM cluster, with all GPUs of the node.
#   sbatch launch/slurm.sh --gin_file=plan.gin --run_dir=/shared/runs/plan
# The run folder has to be on a disk that all nodes see. Two minutes before the time is up, or when the
# node is wanted for another job, SLURM sends SIGTERM: the last complete step is saved, and the job is
# queued again, on whatever node comes next. The same bytes come out as of a run that was not stopped.
#SBATCH --job-name=atgrpo
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=atgrpo-%j.txt
set -euo pipefail
# SLURM runs a copy of this file, so the checkout is where sbatch was called.
source "${SLURM_SUBMIT_DIR:?call it by sbatch, in the checkout}/launch/common.sh"
one_at_a_time "$venv" install_checkout "[gpu]"

# --signal sends SIGTERM to the step that srun makes, and 143 is what a run ends with then.
code=0
srun --kill-on-bad-exit=1 "$venv/bin/python" -m atgrpo_jax.train "$@" || code=$?
if [ "$code" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
