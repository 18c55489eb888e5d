#!/usr/bin/env bash
# Trains each optimizer at its own best learning rate with several seeds, and compares them.
set -euo pipefail
out=outputs/optimizers
try() {  # name, overrides
    python -m lmtrain -m experiments=shakespeare_char "${@:2}" system.threads=1 sample_tokens=0 'logger=[]' \
        hydra.launcher.n_jobs=2 hydra.sweep.dir="$out/$1"
}
try adamw optimizer.lr=2e-3 'seed=range(1,6)'
try muon optimizer=muon optimizer.lr=4e-3 'seed=range(1,6)'
try lion optimizer=lion optimizer.lr=2e-4 scheduler.min_lr=1e-5 'seed=range(1,4)'
try schedule_free optimizer=schedule_free scheduler=constant optimizer.lr=4e-3 'seed=range(1,4)'
python -m lmtrain compare "$out" --value final --planned --png curves.png --csv results.csv
