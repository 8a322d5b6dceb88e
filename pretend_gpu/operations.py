"""Operations of torch on CUDA tensors, computed on the CPU in the same memory.

Each operation of torch with a kernel for CUDA gets another one in its place, which enters the launch in the books and
calls the operation of the CPU. Allocations, views and the reading of a number stay torch's own.
"""

import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from . import graphs, random
from .books import LIBRARY, NOW, check, current_stream, wait
from .memory import on_cpu

aten = torch.ops.aten

# Operations that torch's own code for CUDA does right: they allocate, describe or read memory.
OWN = {
    "aten::empty.memory_format",
    "aten::empty_strided",
    "aten::resize_",
    "aten::set_",
    "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset",
    "aten::set_.source_Tensor",
    "aten::record_stream",
    "aten::is_set_to",
    "aten::is_pinned",
    "aten::_pin_memory",
    "aten::_local_scalar_dense",
}
# Operations without a kernel of their own for CUDA, whose common code would launch one.
COMMON = {"aten::convolution", "aten::convolution_backward"}
# Operations whose result has a shape that depends on values, or that return a value: the host waits for them.
WAITING = {
    "aten::nonzero",
    "aten::nonzero.out",
    "aten::masked_select",
    "aten::masked_select.out",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave.Tensor",
    "aten::bincount",
    "aten::equal",
}
INDEXING = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}


def install() -> None:
    """Replaces torch's operations on CUDA in this process."""
    graphs.install()
    _interpret_triton_in_place()
    _compile_without_inductor()
    _communicate_by_gloo()
    torch._C._cuda_sleep = lambda cycles: None
    library = torch.library.Library("aten", "IMPL", "CUDA")
    _libraries.append(library)  # its kernels go with it
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
        if namespace != "aten" or name in OWN or not (has_kernel or name in COMMON):
            continue
        packet, _, overload = rest.partition(".")
        operation = getattr(getattr(aten, packet), overload or "default")
        if not _is_view(operation):
            library.impl(rest, REPLACED.get(name) or functools.partial(_run, operation, name), allow_override=True)
    library.impl("copy_", _copy_, allow_override=True)


_libraries: list[torch.library.Library] = []


def _is_view(operation: torch._ops.OpOverload) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in operation._schema.returns)


def _is_cuda(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


def _run(operation: torch._ops.OpOverload, name: str, *arguments: Any, **keywords: Any) -> Any:
    """Runs an operation of torch; the operation's kernel for CUDA."""
    leaves = tree_leaves((arguments, keywords))
    tensors = [leaf for leaf in leaves if _is_cuda(leaf)]
    device = tensors[0].device if tensors else torch.device(keywords.get("device") or "cuda")
    _check_devices(name, leaves, device)
    if name in WAITING or (name in INDEXING and _waits_for_indices(arguments[1])):
        wait(device)
    generator = None
    if torch.Tag.nondeterministic_seeded in operation.tags:
        given = next((leaf for leaf in leaves if isinstance(leaf, torch.Generator)), None)
        generator = random.generator_of(given, device)
    changed = [
        value
        for argument, value in _by_argument(operation, arguments, keywords)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    # The packet finds the overload for numbers, which promotes types as the caller expects.
    compute = operation.overloadpacket if _has_number_as_tensor(operation, arguments) else operation
    return launch(name, device, compute, arguments, keywords, changed, generator)


def launch(
    name: str,
    device: torch.device,
    compute: Callable[..., Any],
    arguments: Any,
    keywords: Any,
    changed: Iterable[Any],
    generator: torch.Generator | None = None,
) -> Any:
    """Launches an operation on the current stream: runs it now, and records it if the stream is captured.

    Args:
        name: Name in the books.
        device: Device of the operation.
        compute: The operation for tensors of the CPU.
        arguments: Its arguments, with tensors of the device.
        keywords: Its keyword arguments.
        changed: Arguments that it writes to.
        generator: Generator that it draws from.
    """
    stream = current_stream(device)
    capture = LIBRARY.pretend_gpu_capture(stream)
    recording = graphs.recording(capture) if capture else None
    number = len(recording.operations) if recording else NOW
    check(LIBRARY.pretend_gpu_launch(stream, name.encode(), number))
    originals: dict[int, Tensor] = {}

    def lowered(value: Any) -> Any:
        if _is_cuda(value):
            cpu = on_cpu(value)
            originals[id(cpu)] = value
            return cpu
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == "cuda" else value

    arguments, keywords = tree_map(lowered, (arguments, keywords))

    def run(drawn_from: torch.Generator | None = None) -> Any:
        def with_generator(value: Any) -> Any:
            return drawn_from if isinstance(value, torch.Generator) else value

        return compute(*tree_map(with_generator, arguments), **tree_map(with_generator, keywords))

    if recording is None:
        result = random.draw(generator, run) if generator is not None else run()
        return tree_map(lambda value: _raised(value, originals, device), result)
    on_host = [cpu for cpu in tree_leaves((arguments, keywords)) if id(cpu) in originals]
    written = {id(value) for value in tree_leaves(list(changed))}
    recording.keep([cpu for cpu in on_host if id(originals[id(cpu)]) in written], on_host)
    if generator is None:
        return _recorded(recording, run(), run, originals, device)
    result, draw_again = graphs.recorded_draw(generator, number, run)
    return _recorded(recording, result, draw_again, originals, device)


def _recorded(
    recording: graphs.Recording,
    result: Any,
    again: Callable[[], Any],
    originals: dict[int, Tensor],
    device: torch.device,
) -> Any:
    """Records an operation that has just run in a capture; returns its outputs.

    Args:
        recording: Recording of the capture.
        result: Result on the CPU.
        again: Computes the result of a replay.
        originals: Arguments of the operation, by the ids of their tensors on the CPU.
        device: Device of the outputs.
    """
    is_new = [isinstance(value, Tensor) and not _is_argument(value, originals) for value in tree_leaves(result)]
    outputs = tree_map(lambda value: _raised(value, originals, device), result)
    made = [on_cpu(output) for output, new in zip(tree_leaves(outputs), is_new, strict=True) if new]
    recording.keep([], made)
    recording.made += made

    def replay() -> None:
        fresh = [value for value, new in zip(tree_leaves(again()), is_new, strict=True) if new]
        for output, value in zip(made, fresh, strict=True):
            output.copy_(value)

    recording.operations.append(replay)
    return outputs


def _is_argument(value: Tensor, originals: dict[int, Tensor]) -> bool:
    """Returns True if a result is an argument of the operation, in the argument's memory."""
    return id(value) in originals and originals[id(value)].size() == value.size()


def _has_number_as_tensor(operation: torch._ops.OpOverload, arguments: tuple[Any, ...]) -> bool:
    """Returns True if a plain number is in the place of a tensor, as which numbers reach a kernel in Python."""
    return any(
        isinstance(declared.type, torch.TensorType) and isinstance(value, (bool, int, float))
        for declared, value in zip(operation._schema.arguments, arguments, strict=False)
    )


def _by_argument(
    operation: torch._ops.OpOverload, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> list[tuple[Any, Any]]:
    declared = operation._schema.arguments
    named = {argument.name: argument for argument in declared}
    return [
        *zip(declared, arguments, strict=False),
        *((named[key], value) for key, value in keywords.items() if key in named),
    ]


def _raised(value: Any, originals: dict[int, Tensor], device: torch.device) -> Any:
    """Returns the CUDA tensor of a result: the argument that it is, or a new tensor."""
    if not isinstance(value, Tensor):
        return value
    if _is_argument(value, originals):
        return originals[id(value)]
    if id(value) in originals:  # an argument `out` of another size
        raised = originals[id(value)].resize_(value.size())
    else:
        raised = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
    on_cpu(raised).copy_(value)
    return raised


def _check_devices(name: str, leaves: list[Any], device: torch.device) -> None:
    """Raises RuntimeError if tensors of the CPU are mixed with CUDA tensors; single numbers may be."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.device != device and leaf.dim() > 0 and name not in INDEXING:
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} got {leaf.device} and {device}")


def _waits_for_indices(indices: Any) -> bool:
    """Returns True if indices are masks, whose elements are counted, or come from the host."""
    return any(
        index is not None and (index.dtype in (torch.bool, torch.uint8) or not index.is_cuda) for index in indices
    )


def _copy_(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copies between tensors of any two devices; the kernel of copy_."""
    if to.is_cuda and source.is_cuda:
        return launch("copy_", to.device, aten.copy_.default, (to, source), {}, [to])
    device, on_host = (to.device, source) if to.is_cuda else (source.device, to)
    stream = current_stream(device)
    capture = LIBRARY.pretend_gpu_capture(stream)
    recording = graphs.recording(capture) if capture else None
    number = len(recording.operations) if recording else NOW
    if not non_blocking:
        wait(device)
    check(LIBRARY.pretend_gpu_transfer(stream, on_host.data_ptr(), number))
    cpu_to, cpu_source = (on_cpu(tensor) if tensor.is_cuda else tensor for tensor in (to, source))
    if recording is not None:
        recording.keep([cpu_to], [cpu_to if to.is_cuda else cpu_source])
        recording.operations.append(lambda: cpu_to.copy_(cpu_source))
    cpu_to.copy_(cpu_source)
    return to


def _cudnn_batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: float, epsilon: float
) -> tuple[Tensor, ...]:
    def compute(*arguments: Any) -> tuple[Tensor, ...]:
        return *aten.native_batch_norm.default(*arguments), torch.empty(0, dtype=torch.uint8)

    arguments = (x, weight, bias, mean, variance, training, momentum, epsilon)
    changed = [statistic for statistic in (mean, variance) if training and statistic is not None]
    return launch("cudnn_batch_norm", x.device, compute, arguments, {}, changed)


def _cudnn_batch_norm_backward(
    x: Tensor,
    gradient: Tensor,
    weight: Any,
    mean: Any,
    variance: Any,
    saved_mean: Any,
    saved: Any,
    epsilon: float,
    _: Any,
) -> tuple[Tensor, ...]:
    arguments = (gradient, x, weight, mean, variance, saved_mean, saved, True, epsilon, [True, True, True])
    compute = aten.native_batch_norm_backward.default
    return launch("cudnn_batch_norm_backward", x.device, compute, arguments, {}, [])


def _cudnn_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    return torch._C._conv_determine_backend_memory_format(x, weight, torch._C._ConvBackend.Cudnn)


def _convolution(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    memory_format = _cudnn_format(x, weight)

    def compute(*arguments: Any) -> Tensor:
        return aten.convolution.default(*arguments).contiguous(memory_format=memory_format)

    return launch("convolution", x.device, compute, (x, weight, *others), {}, [])


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *others: Any) -> tuple[Any, ...]:
    memory_format = _cudnn_format(x, weight)

    def compute(*arguments: Any) -> tuple[Any, ...]:
        *gradients, bias_gradient = aten.convolution_backward.default(*arguments)
        in_format = (None if x is None else x.contiguous(memory_format=memory_format) for x in gradients)
        return *in_format, bias_gradient

    return launch("convolution_backward", x.device, compute, (gradient, x, weight, *others), {}, [])


def _convolution_add_relu(x: Tensor, weight: Tensor, other: Any, alpha: Any, bias: Any, *shape: Any) -> Tensor:
    memory_format = _cudnn_format(x, weight)

    def compute(x: Tensor, weight: Tensor, other: Any, bias: Any) -> Tensor:
        stride, padding, dilation, groups = shape
        out = aten.convolution.default(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
        out = out if other is None else out + alpha * other
        return out.relu().contiguous(memory_format=memory_format)

    return launch("cudnn_convolution_add_relu", x.device, compute, (x, weight, other, bias), {}, [])


def _convolution_relu(x: Tensor, weight: Tensor, bias: Any, *shape: Any) -> Tensor:
    return _convolution_add_relu(x, weight, None, 1.0, bias, *shape)


REPLACED = {
    "aten::cudnn_convolution_relu": _convolution_relu,
    "aten::cudnn_convolution_add_relu": _convolution_add_relu,
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::copy_": _copy_,
    "aten::cudnn_batch_norm": _cudnn_batch_norm,
    "aten::cudnn_batch_norm_backward": _cudnn_batch_norm_backward,
}


def _interpret_triton_in_place() -> None:
    """Lets Triton's interpreter work on the memory of CUDA tensors, as a launch on the current stream."""
    from triton.runtime import interpreter

    GridExecutor = interpreter.GridExecutor  # noqa: N806 - a class
    interpret = GridExecutor.__call__
    one_at_a_time = threading.RLock()
    # The interpreter patches triton.language at each launch, which takes longer than a small kernel: once is enough.
    interpreter._patch_lang = functools.cache(_patched_for_good(interpreter._patch_lang))

    def call(self: GridExecutor, *arguments: Any, **keywords: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((arguments, keywords)) if _is_cuda(leaf)]
        if not tensors:
            return interpret(self, *arguments, **keywords)

        def compute(*arguments: Any, **keywords: Any) -> None:
            with one_at_a_time:
                interpret(self, *arguments, **keywords)

        return launch(f"triton {self.fn.__name__}", tensors[0].device, compute, arguments, keywords, tensors)

    GridExecutor.__call__ = call


def _patched_for_good(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def patched(function: Any) -> Any:
        scope = patch(function)
        scope.restore = lambda: None
        return scope

    return patched


def _compile_without_inductor() -> None:
    """Lets torch.compile trace and differentiate as ever, and run the operations of the graph one by one."""
    compile_ = torch.compile

    @functools.wraps(compile_)
    def compile_here(*arguments: Any, mode: Any = None, options: Any = None, **keywords: Any) -> Any:
        return compile_(*arguments, **{"backend": "aot_eager"} | keywords)

    torch.compile = compile_here


def _communicate_by_gloo() -> None:
    """Lets ranks on CUDA tensors exchange them by gloo, through copies on the host: NCCL has a runtime of its own."""
    from torch import distributed

    if not distributed.is_available():
        return
    init_process_group = distributed.init_process_group

    @functools.wraps(init_process_group)
    def init_with_gloo(backend: str | None = None, *arguments: Any, **keywords: Any) -> None:
        backend = None if backend is None else backend.replace("nccl", "gloo")
        init_process_group(backend, *arguments, **keywords)

    distributed.init_process_group = init_with_gloo
