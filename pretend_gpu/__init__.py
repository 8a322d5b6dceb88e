"""A CUDA device that is not there: torch's own CUDA build runs on a stub of the CUDA runtime, with values by the CPU.

    python -m pretend_gpu -m pytest tests/gpu
    python -m pretend_gpu -m fastadaad train demo device=cuda

torch's allocator, streams, events, CUDA graphs and autograd threads are the real ones. The library in runtime/ keeps
books by CUDA's rules below them, operations.py computes each operation on the CPU in the same memory, and graphs.py
records operations during a capture and runs them again at each replay. Triton kernels run in Triton's interpreter.

Breaking a rule of CUDA is an error: a wait of the host or an allocation of memory during a capture, a copy of pageable
memory in a graph, work that escapes a capture or is not joined to it, a replay that touches freed memory.
torch.cuda.set_sync_debug_mode works as on a device.

What it cannot show: speed, races (torch's sanitizer finds those), kernels of cuDNN, cuBLAS and NVRTC, Inductor's code
for CUDA (torch.compile uses aot_eager), DALI and NCCL.
"""
