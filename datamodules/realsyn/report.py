"""stub"""
from pathlib import Path
from typing import Any
def describe_funnel(f): return "\n".join(f"{n}: {v.seconds:.1f}s {v.stats.counts} {v.stats.reasons}" for n,v in f.items())
def list_problems(f): return []
def write_report(o,f): return o
