"""A run's newest weights as safetensors: `python jobs/export.py run=hello to=hello-weights`."""

import json

from tidemill.compose import run_door
from tidemill.errors import CheckpointError
from tidemill.spec.base import from_plain
from tidemill.spec.doors import ExportSpec
from tidemill.spec.run import RunSpec


def main(spec: ExportSpec) -> None:
    """Write the weights of the newest checkpoint and say where they are."""
    from tidemill.checkpoint.manifest import committed
    from tidemill.storage import locate, read_bytes

    run = locate(spec.storage) / spec.run
    checkpoints = committed(run)
    if not checkpoints:
        raise CheckpointError(f"run: {run} has no checkpoint; train it first, or correct storage")
    trained = from_plain(RunSpec, json.loads(read_bytes(run / "spec.json")))

    from tidemill.checkpoint.export import export_safetensors
    from tidemill.data.text import VOCAB

    weights = export_safetensors(
        checkpoints[0],
        locate(spec.to),
        vocab=getattr(trained.data, "vocab", VOCAB),
        dtype=spec.dtype.torch_name,
        overwrite=spec.overwrite,
    )
    print(f"{checkpoints[0].name} of {spec.run}: {weights}")


if __name__ == "__main__":
    run_door(main, config_name="export", schema=ExportSpec)
