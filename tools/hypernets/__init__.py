"""The verb ``metagrad-bench hypernets``: what the hypernetwork costs, by strategy and within a training step."""
