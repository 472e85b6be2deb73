"""A Ray cluster of so many nodes on this machine, each with one CPU, until standard input ends (``… 2``).

Prints its address, then the process numbers of the raylets of all nodes but the head.
"""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# A busy machine's nodes are slow, not dead; a dead one refuses to be asked, at once and every time.
os.environ |= {"RAY_health_check_failure_threshold": "20", "RAY_health_check_period_ms": "1000"}

from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
others = [cluster.add_node(**node) for _ in range(int(sys.argv[1]) - 1)]
print(cluster.address)  # noqa: T201
print(*(other.all_processes["raylet"][0].process.pid for other in others), flush=True)  # noqa: T201
sys.stdin.read()
cluster.shutdown()
