"""The list of all checks of a device, in the order in which they run: what the later ones rely on comes first."""

from lmtrain.verify.device.finding import Check

HERE = "lmtrain.verify.device"
DEVICE = "device"  # always runs, since its description is part of the report
FIGURES = "figures"  # the check that `--skip-figures` leaves out

CHECKS = (
    Check(
        DEVICE,
        f"{HERE}.describe:the_device",
        "torch cannot use this device: see the driver, the container, and `nvidia-smi`",
        "numbers",
        60,
    ),
    Check(
        "precision",
        f"{HERE}.numbers.precision:in_each_dtype",
        "losses or gradients of this device are wrong: do not train on it; another torch or driver may cure it",
        "numbers",
        180,
    ),
    Check(
        "attention",
        f"{HERE}.numbers.attention:of_each_kind",
        "a kernel of attention is wrong here: choose another one",
        "numbers",
        150,
    ),
    Check(
        "optimizer",
        f"{HERE}.numbers.optimizer:against_float64",
        "the fused optimizer or the clipping computes something else than AdamW: do not train with it",
        "numbers",
        60,
    ),
    Check(
        "bad-steps",
        f"{HERE}.numbers.bad_steps:change_nothing",
        "a NaN or a spike would damage the model instead of being skipped",
        "numbers",
        60,
    ),
    Check(
        "loss",
        f"{HERE}.numbers.equal_mathematics:loss_in_chunks",
        "the loss in chunks is not the loss",
        "numbers",
        60,
    ),
    Check(
        "recompute",
        f"{HERE}.numbers.equal_mathematics:recomputation",
        "saving memory by recomputation would change the result",
        "numbers",
        60,
    ),
    Check(
        "waiting",
        f"{HERE}.overlap:steps_do_not_wait",
        "the host waits for the device in every step, so that the device idles: training is slower than it could be",
        "overlap",
        60,
    ),
    Check(
        "prefetch",
        f"{HERE}.overlap:batches_arrive",
        "batches are copied wrongly, or the host waits for the copies",
        "overlap",
        60,
    ),
    Check(
        "checkpoint",
        f"{HERE}.overlap:checkpoints_are_of_their_step",
        "a checkpoint that is saved in the background contains values of later steps: a resume would not be exact",
        "overlap",
        60,
    ),
    Check(
        "memory",
        f"{HERE}.memory:planned_and_measured",
        "the memory in `plan` is wrong for this device: leave more room than it says",
        "memory",
        60,
    ),
    Check(
        "compile",
        f"{HERE}.numbers.precision:compiled",
        "torch.compile changes the result here: use system.compile=false",
        "compile",
        180,
    ),
    Check(
        "repeat",
        f"{HERE}.repeat:same_bits_twice",
        "two runs of the same config differ here, although system.deterministic=true: they cannot be compared exactly",
        "repeat",
        120,
    ),
    Check(
        "resume",
        f"{HERE}.resume:after_kills",
        "a killed run does not continue exactly; `verify-resume` finds where",
        "resume",
        150,
    ),
    *(
        Check(FIGURES, f"{HERE}.figures:{figure}", "this model could not be trained at this size", "figures", 180)
        for figure in ("gpt2", "production", "llama_1b", "llama_350m", "gpt2_deterministic")
    ),
)
NAMES = tuple(dict.fromkeys(check.name for check in CHECKS))
