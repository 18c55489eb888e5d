"""Turn JSON lines into a token folder with datatrove, on one machine, a Slurm cluster or Ray."""

import argparse
from functools import partial
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader

from lmtrain.data.text.holdout import by_document
from lmtrain.data.tokenizer import Pretrained
from lmtrain.data.writing.datatrove import Finish, TokenShards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", help="folder of .jsonl files, compressed (.gz, .zst) or not")
    parser.add_argument("folder", type=Path, help="token folder to write")
    parser.add_argument("--tokenizer", default="gpt2", help="a folder with a tokenizer.json, or a name on the hub")
    parser.add_argument("--text-key", default="text", help="the field with the text")
    parser.add_argument("--min-characters", type=int, default=1, help="skip shorter documents")
    parser.add_argument("--val-share", type=float, default=0.01, help="share of documents for validation")
    parser.add_argument("--shard-tokens", type=int, default=1 << 30, help="most tokens per file")
    parser.add_argument("--tasks", type=int, default=8, help="number of ranks that share the files")
    parser.add_argument("--workers", type=int, default=-1, help="ranks that run at the same time; -1 = all")
    parser.add_argument("--executor", choices=["local", "slurm", "ray"], default="local")
    parser.add_argument("--partition", default="cpu", help="partition of the Slurm cluster")
    parser.add_argument("--time", default="04:00:00", help="Slurm's limit for a job")
    options = parser.parse_args()

    tokenizer = Path(options.tokenizer) if Path(options.tokenizer).is_dir() else Pretrained(options.tokenizer)
    min_characters = options.min_characters
    tokenize = [
        JsonlReader(options.texts, glob_pattern="**/*.jsonl*", text_key=options.text_key),
        LambdaFilter(lambda document: len(document.text) >= min_characters),  # add your own filters here
        TokenShards(options.folder, tokenizer, partial(by_document, val_share=options.val_share), options.shard_tokens),
    ]
    executor = {
        "local": LocalPipelineExecutor,
        "slurm": partial(SlurmPipelineExecutor, partition=options.partition, time=options.time, qos=None),
        "ray": RayPipelineExecutor,  # uses the cluster at RAY_ADDRESS, or starts one on this machine
    }[options.executor]
    logs = options.folder.absolute().with_name(f"{options.folder.name}-logs")  # records finished ranks, for all nodes
    ranks = executor(tokenize, tasks=options.tasks, workers=options.workers, logging_dir=f"{logs}/tokenize")
    executor([Finish(options.folder)], tasks=1, depends=ranks, logging_dir=f"{logs}/finish").run()


if __name__ == "__main__":
    main()
