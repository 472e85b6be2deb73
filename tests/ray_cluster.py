"""A Ray cluster of so many nodes on this machine, each with one CPU, until standard input ends (``… 2``)."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ |= {"RAY_health_check_failure_threshold": "60"}  # a busy machine's nodes are slow, not dead

from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80 * 1024**2}
cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
for _ in range(int(sys.argv[1]) - 1):
    cluster.add_node(**node)
print(cluster.address, flush=True)  # noqa: T201
sys.stdin.read()
cluster.shutdown()
