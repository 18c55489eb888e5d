#!/usr/bin/env bash
# Tries learning rates of each optimizer on experiments=shakespeare_char, with a seed that the comparison leaves out.
set -euo pipefail
try() {  # name, overrides
    python -m lmtrain -m experiments=shakespeare_char "${@:2}" seed=100 system.threads=1 sample_tokens=0 'logger=[]' \
        hydra.launcher.n_jobs=2 hydra.sweep.dir="outputs/tuning/$1"
}
try adamw optimizer.lr=1e-3,2e-3,4e-3
try muon optimizer=muon optimizer.lr=2e-3,4e-3,8e-3
try lion optimizer=lion optimizer.lr=5e-5,1e-4,2e-4,4e-4
try lion_low optimizer=lion scheduler.min_lr=1e-5 optimizer.lr=2e-4
try schedule_free optimizer=schedule_free scheduler=constant optimizer.lr=4e-3,8e-3,1.6e-2
