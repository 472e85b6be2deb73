"""Hydra plugins of metagrad-bench: the sweeper of checked cells, and launchers that run them on other machines.

Hydra executes these modules before it enters them into ``sys.modules``, so dataclasses here carry real annotations (no
``from __future__ import annotations``). Ray and submitit are imported only where a launcher is used.
"""
