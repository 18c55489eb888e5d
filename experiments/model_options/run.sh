#!/usr/bin/env bash
# Trains the decoder without and with each of its options, with eight seeds and the same FLOPs.
set -euo pipefail
out=outputs/model_options
try() {  # name, overrides
    python -m lmtrain -m "${@:2}" 'seed=range(1,9)' 'logger=[]' hydra.launcher.n_jobs=2 hydra.sweep.dir="$out/$1"
}
plain=experiments=model_options/decoder
try plain $plain
try relu2 $plain model.mlp=relu2 model.d_ff=288
try qk_norm $plain model.qk_norm=true
try parallel_blocks $plain model.parallel_blocks=true
try untied $plain model.tie_embeddings=false
try value_embeddings $plain 'model.value_embeddings=[0,-1]'
try embedding_scale $plain model.embedding_scale=true
try partial_rope $plain model.rope_fraction=0.25
try nope $plain model.nope_every=4
try window $plain model.sliding_window=16 model.global_every=4 trainer.max_steps=432   # the window saves 7% of the FLOPs
try logit_softcap $plain model.logit_softcap=30
try attention_softcap $plain model.attention_softcap=50
try z_loss $plain model.z_loss=1e-4
try experts experiments=model_options/moe trainer.max_steps=397                        # the router takes 1%
baseline=$(ls -d "$out"/plain/seed=1,*)
python -m lmtrain compare "$out" --value final --planned --baseline "$baseline" --csv results.csv
python -m lmtrain compare "$out"/{plain,window,value_embeddings,embedding_scale,parallel_blocks,experts,qk_norm} \
    --value final --planned --png curves.png
