"""Other machines as devices: llama.cpp's RPC back end, seen from the machine that has the model.

A worker (`finesteer-local worker`, llama.cpp's `rpc-server`) lends its devices over TCP. Once added, they are devices
like a GPU of this machine: llama.cpp puts layers on them, and the tap reads and writes their tensors through the same
`ggml_backend_tensor_get` and `ggml_backend_tensor_set`.

llama.cpp ends the process (`GGML_ABORT` in ggml-rpc.cpp) where a worker cannot be reached, speaks another version, or
goes away. So we ask over a connection of our own first (`hello`), and raise an error like any other. Where a worker
goes away later, the process cannot be saved (`lost`).
"""

from finesteer_local.runtime.rpc.hello import START, check_worker, greeting, protocol, split_endpoint
from finesteer_local.runtime.rpc.lost import check_workers, end_when_lost
from finesteer_local.runtime.rpc.use import INSTALL, MAX_WORKERS, procedure, use_workers

__all__ = [
    "INSTALL",
    "MAX_WORKERS",
    "START",
    "check_worker",
    "check_workers",
    "end_when_lost",
    "greeting",
    "procedure",
    "protocol",
    "split_endpoint",
    "use_workers",
]
