"""--device of every script that runs a model, as argparse's type: add("--device", type=find_device, default="auto")."""


def find_device(name):
    """"auto" -> "cuda" if there is one, else "cpu"; other names as they are. Raises SystemExit: no device, or not there."""
    import torch  # here: some scripts that use this start worker processes, which need no torch
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SystemExit(f"--device {name}: torch knows no such device. Accepted: auto, cpu, cuda, cuda:1, mps ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count() or 'no'} GPU here. Leave --device "
                         f"out to use what there is, or install a CUDA build of torch")
    return name
