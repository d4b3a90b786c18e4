"""How the peers of the workshops are timed and told: as the workshops themselves (bench/kernels/gpu.h)."""
import datetime
import json
import statistics

import torch


def median_us(call, calls, samples=9):
    """Microseconds of call(i): the median of replays of a CUDA graph of call(0) to call(calls - 1)."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(2):
            call(i)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            call(i)
    times = []
    for i in range(samples + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return 1e3 * statistics.median(times) / calls


def print_row(row):
    """Prints a row as a line of JSON, with the machine and the date."""
    where = {"machine": torch.cuda.get_device_name(), "date": datetime.date.today().isoformat()}
    print(json.dumps(row | where), flush=True)
