#!/bin/bash
# sbatch deploy/slurm.sh
# A run on 4 nodes of 4 GPUs: a Ray node on each, and the command on the first. Before the time limit it ends with a
# checkpoint; submitted again, or requeued by Slurm, it goes on.
# Yours: the sizes, the config and its name, what brings kdray into PATH (`module load`, `source .venv/bin/activate`),
# and the project, which is where sbatch is called, on storage that every node shares.
#SBATCH --job-name=crd --open-mode=append
#SBATCH --nodes=4 --ntasks-per-node=1 --cpus-per-task=32 --gpus-per-node=4
#SBATCH --time=24:00:00 --signal=B:TERM@120 --requeue

# Jobs may share a node: each has a port, and a folder for Ray's sockets and logs, of its own.
RAY_ADDRESS=$(hostname):$((20000 + SLURM_JOB_ID % 10000))
RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
# Who reaches a port of Ray without a token runs code as you. It is kept in the home folder, which the nodes share.
RAY_AUTH_MODE=token
export RAY_ADDRESS RAY_TMPDIR RAY_AUTH_MODE
ray get-auth-token --generate > /dev/null

# A step asks for its CPUs anew (since Slurm 22.05), and Ray would count the CPUs of the machine, not those of the job.
# shellcheck disable=SC2016
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" sh -c '
    if [ "$SLURM_PROCID" = 0 ]; then where="--head --port=${RAY_ADDRESS##*:}"; else where="--address=$RAY_ADDRESS"; fi
    exec ray start $where --num-cpus="$SLURM_CPUS_PER_TASK" --block' &
for _ in $(seq 100); do    # until all nodes have joined, five minutes at most
    [ "$(ray status 2>/dev/null | grep -c ' node_')" = "$SLURM_NNODES" ] && break
    sleep 3
done

# In the place of this script: the signal is the command's, and so is the exit code. With it the job ends, and Ray.
[ -d runs/crd ] && exec kdray resume crd
exec kdray train configs/crd.yaml --num-workers 16 --name crd
