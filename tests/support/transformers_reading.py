"""Loads an exported folder with transformers, and writes its logits and token ids; runs as a process of its own.

Its arguments are the folder and a file of requests as JSON. It prints the results as JSON. Another version of
transformers is used if PYTHONPATH begins with the folder that has it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def main() -> None:
    folder, requests = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    transformers.logging.set_verbosity_error()
    answers: dict[str, Any] = {"version": transformers.__version__}
    if "tokens" in requests:
        for name in ("float32", "float64"):
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, output_loading_info=True, attn_implementation="sdpa"
            )
            answers["loading"] = {key: sorted(map(str, value)) for key, value in info.items() if value}
            answers["dtype"] = str(model.config.dtype)
            model = model.to(getattr(torch, name)).eval()
            for module in model.modules():  # in float64, positions are computed in float64 too
                if name == "float64" and hasattr(module, "inv_freq"):
                    module.inv_freq = module.inv_freq.float()
            with torch.no_grad():
                answers[name] = model(torch.tensor(requests["tokens"])).logits.tolist()
        generated = model.generate(torch.tensor(requests["tokens"])[:, :4], do_sample=False, max_new_tokens=8)
        answers["greedy"] = generated.tolist()
    if "texts" in requests:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        answers["ids"] = tokenizer(requests["texts"], add_special_tokens=True)["input_ids"]
        answers["decoded"] = [tokenizer.decode(ids) for ids in answers["ids"][:50]]
        answers["eos"] = tokenizer.eos_token_id
        answers["model_max_length"] = tokenizer.model_max_length
    Path(sys.argv[3]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
