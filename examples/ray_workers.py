"""Ray starts the workers, hooke ties them together: each task only needs the center's address.

python examples/ray_workers.py --workers 2

The center is served by the script itself, on this machine. On a cluster serve it where all nodes can reach it, with a
token and TLS (hooke center), and pass its address. A task that Ray starts again joins again.
"""

import argparse
from pathlib import Path
from typing import Any

import ray
from machines import train

import hooke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--codec", default="int8")
    parser.add_argument("--center", help="address of a center that listens already")
    args = parser.parse_args()

    examples = str(Path(__file__).parent)
    ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": examples, "OMP_NUM_THREADS": "1"}})
    task: Any = ray.remote(num_cpus=1, max_retries=3)(train)
    served = None if args.center else hooke.serve(hooke.LocalCenter())
    url = args.center or (served.url if served else "")
    accuracies = ray.get([task.remote(url, steps=args.steps, codec=args.codec) for _ in range(args.workers)])
    for number, accuracy in enumerate(accuracies):
        print(f"worker {number} has finished: it knows {accuracy:.1%} of the test images")
    if served is not None:
        print(f"the center took {served.center.exchanges} exchanges")
        served.close()
    ray.shutdown()


if __name__ == "__main__":
    main()
