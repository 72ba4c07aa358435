#!/usr/bin/env bash
# Trains on nodes of a SLURM cluster, with all GPUs of each. Several nodes are the hosts of one run
# (docs/hosts.md), whose mesh has to have all of their GPUs.
#   sbatch launch/slurm.sh --gin_file=plan.gin --run_dir=/shared/runs/plan
#   sbatch --nodes=2 launch/slurm.sh --gin_file=plan.gin --gin_file=parts/pod.gin --run_dir=/shared/runs/plan
# The run folder has to be on a disk that all nodes see. Two minutes before the time is up, or when the
# nodes are wanted for another job, SLURM sends SIGTERM: the last complete step is saved, and the job is
# queued again, on whatever nodes come next. The same bytes come out as of a run that was not stopped.
# A run that dies is started again on the same nodes, twice at most. SLURM itself queues a job again
# whose node has failed.
#SBATCH --job-name=atgrpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
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

train=("$venv/bin/python" -m atgrpo_jax.train "$@")
if [ "${SLURM_NNODES:-1}" -gt 1 ]; then
  first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  # A port that Linux gives to nobody by itself, and another one for each job.
  port=$((61440 + SLURM_JOB_ID % 4096))
  train+=("--hosts=$SLURM_NNODES" "--coordinator=$first:$port")
  # A node learns its number from srun. If one dies, the others end by themselves, and srun waits for that:
  # JAX's own deadline for hosts that do not come is 300 s.
  # shellcheck disable=SC2016
  step=(srun --kill-on-bad-exit=0 --wait=420 --label bash -c 'exec "$@" "--host=$SLURM_NODEID"' host)
else
  step=(srun --kill-on-bad-exit=1)
fi

# --signal sends SIGTERM to the step that srun makes, and 143 is what a run ends with then. Of several
# hosts srun tells the highest exit code. 2 is for people.
for left in 2 1 0; do
  code=0
  "${step[@]}" "${train[@]}" || code=$?
  case "$code" in
    0 | 2) break ;;
    143)
      scontrol requeue "$SLURM_JOB_ID"
      break
      ;;
  esac
  if [ "$left" -gt 0 ]; then
    echo "the run died with exit code $code; it is started again, $left times at most" >&2
    sleep "${ATGRPO_PAUSE:-10}"
  fi
done
exit "$code"
