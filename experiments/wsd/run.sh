#!/usr/bin/env bash
# Trains AdamW with a cosine and with WSD (warmup, stable, decay); the learning rates were tried with another seed.
set -euo pipefail
out=outputs/wsd
try() {  # name, overrides
    python -m lmtrain -m experiments=shakespeare_char "${@:2}" system.threads=1 sample_tokens=0 'logger=[]' \
        hydra.launcher.n_jobs=2 hydra.sweep.dir="$out/$1"
}
wsd=(scheduler=wsd scheduler.warmup_steps=100 scheduler.min_lr=0 scheduler.decay_steps=400)
try tuning/cosine seed=100 optimizer.lr=1e-3,2e-3,4e-3
try tuning/wsd "${wsd[@]}" seed=100 optimizer.lr=1e-3,2e-3,4e-3
try final/cosine optimizer.lr=2e-3 'seed=range(1,6)'
try final/cosine_to_zero optimizer.lr=2e-3 scheduler.min_lr=0 'seed=range(1,6)'
try final/wsd "${wsd[@]}" optimizer.lr=2e-3 'seed=range(1,6)'
python -m lmtrain compare "$out/final" --value final --png curves.png --csv results.csv
