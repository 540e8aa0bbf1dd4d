"""A run's newest weights as safetensors: `python jobs/export.py run=hello to=hello-weights`."""

from tidemill.compose import run_door
from tidemill.spec.doors import ExportSpec


def main(spec: ExportSpec) -> None:
    """Write the weights and say where they are."""
    from tidemill.launch.weights import export

    print(f"weights of {spec.run}: {export(spec)}")


if __name__ == "__main__":
    run_door(main, config_name="export", schema=ExportSpec)
