"""Text from a run's newest checkpoint: `python jobs/generate.py run=hello "prompt=def main():"`."""

from tidemill.compose import run_door
from tidemill.spec.doors import GenerateSpec


def main(spec: GenerateSpec) -> None:
    """Print the prompt and what the model goes on with, as it comes."""
    from tidemill.launch.weights import generate

    for piece in generate(spec):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    run_door(main, config_name="generate", schema=GenerateSpec)
