// Memory of the device and of the host, and copies between them.

#include "books.h"

#include <sys/mman.h>
#include <cstring>

using namespace books;

// ---- Memory

static constexpr size_t kPage = 4096;
static constexpr size_t kLargestPoison = size_t{64} << 20;  // bytes that are filled with NaN at the beginning of an allocation

static std::string place_of(const void* pointer) {
  if (block_at(device_blocks, pointer)) return "device";
  return block_at(pinned_blocks, pointer) ? "pinned memory" : "pageable memory";
}

static size_t whole_pages(size_t num_bytes) { return (num_bytes + kPage - 1) / kPage * kPage; }

static void* new_memory(size_t num_bytes) {
  void* pointer = mmap(nullptr, whole_pages(num_bytes), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return pointer == MAP_FAILED ? nullptr : pointer;
}

static cudaError_t run_or_capture(void* handle, const std::string& what, const Node& node) {
  Stream* stream = stream_of(handle);
  bool is_captured = stream->capture != nullptr;
  if (int error = issue(stream, what, node)) return static_cast<cudaError_t>(error);
  if (!is_captured) run_now(node);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaMalloc(void** pointer, size_t num_bytes) {
  Lock lock(mutex);
  if (int error = check_allowed("cudaMalloc")) return static_cast<cudaError_t>(error);
  if (used[current_device] + num_bytes > memory_limit() || (*pointer = new_memory(num_bytes)) == nullptr) {
    last_error = cudaErrorMemoryAllocation;
    return cudaErrorMemoryAllocation;
  }
  memset(*pointer, 0xff, num_bytes < kLargestPoison ? num_bytes : kLargestPoison);  // NaN in every float type
  device_blocks[static_cast<char*>(*pointer)] = Block{num_bytes, current_device};
  used[current_device] += num_bytes;
  counts.allocations++;
  note("allocation of " + std::to_string(num_bytes) + " bytes");
  return cudaSuccess;
}

PUBLIC cudaError_t cudaFree(void* pointer) {
  Lock lock(mutex);
  if (pointer == nullptr) return cudaSuccess;
  if (int error = check_allowed("cudaFree")) return static_cast<cudaError_t>(error);
  auto found = device_blocks.find(static_cast<char*>(pointer));
  if (found == device_blocks.end()) return cudaErrorInvalidValue;
  used[found->second.device] -= found->second.num_bytes;
  munmap(pointer, whole_pages(found->second.num_bytes));
  device_blocks.erase(found);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaMallocAsync(void** pointer, size_t num_bytes, cudaStream_t) { return cudaMalloc(pointer, num_bytes); }
PUBLIC cudaError_t cudaFreeAsync(void* pointer, cudaStream_t) { return cudaFree(pointer); }

PUBLIC cudaError_t cudaHostAlloc(void** pointer, size_t num_bytes, unsigned) {
  Lock lock(mutex);
  if (int error = check_allowed("cudaHostAlloc")) return static_cast<cudaError_t>(error);
  *pointer = new_memory(num_bytes);
  pinned_blocks[static_cast<char*>(*pointer)] = Block{num_bytes, -1};
  return cudaSuccess;
}

PUBLIC cudaError_t cudaFreeHost(void* pointer) {
  Lock lock(mutex);
  if (int error = check_allowed("cudaFreeHost")) return static_cast<cudaError_t>(error);
  pinned_blocks.erase(static_cast<char*>(pointer));
  return cudaSuccess;
}

PUBLIC cudaError_t cudaHostRegister(void* pointer, size_t num_bytes, unsigned) {
  Lock lock(mutex);
  pinned_blocks[static_cast<char*>(pointer)] = Block{num_bytes, -1};
  return cudaSuccess;
}

PUBLIC cudaError_t cudaHostUnregister(void* pointer) {
  Lock lock(mutex);
  pinned_blocks.erase(static_cast<char*>(pointer));
  return cudaSuccess;
}

PUBLIC cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Lock lock(mutex);
  *total = memory_limit();
  *free = *total - used[current_device];
  return cudaSuccess;
}

PUBLIC cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  Lock lock(mutex);
  memset(attributes, 0, sizeof *attributes);
  const Block* block = block_at(device_blocks, pointer);
  bool is_pinned = block_at(pinned_blocks, pointer) != nullptr;
  attributes->type = block ? cudaMemoryTypeDevice : is_pinned ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  attributes->device = block ? block->device : 0;
  attributes->devicePointer = block || is_pinned ? const_cast<void*>(pointer) : nullptr;
  attributes->hostPointer = is_pinned ? const_cast<void*>(pointer) : nullptr;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t num_bytes, cudaMemcpyKind, cudaStream_t handle) {
  Lock lock(mutex);
  counts.copies++;
  std::string what = "copy from " + place_of(from) + " to " + place_of(to);
  Capture* capture = stream_of(handle)->capture;
  if (capture != nullptr && what.find("pageable") != std::string::npos) {
    capture->is_invalid = true;
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureUnsupported, what + " during a capture"));
  }
  return run_or_capture(handle, what, Node{Node::copy, -1, to, from, num_bytes});
}

PUBLIC cudaError_t cudaMemcpy(void* to, const void* from, size_t num_bytes, cudaMemcpyKind kind) {
  Lock lock(mutex);
  counts.waits++;
  if (int error = check_allowed("cudaMemcpy")) return static_cast<cudaError_t>(error);
  return cudaMemcpyAsync(to, from, num_bytes, kind, nullptr);
}

PUBLIC cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t num_bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(to, from, num_bytes, cudaMemcpyDefault, stream);
}

PUBLIC cudaError_t cudaMemsetAsync(void* to, int value, size_t num_bytes, cudaStream_t handle) {
  Lock lock(mutex);
  counts.fills++;
  return run_or_capture(handle, "fill", Node{Node::fill, -1, to, nullptr, num_bytes, value});
}

PUBLIC cudaError_t cudaMemset(void* to, int value, size_t num_bytes) { return cudaMemsetAsync(to, value, num_bytes, nullptr); }

PUBLIC cudaError_t cudaGetSymbolAddress(void** pointer, const void*) {
  static char symbol[65536];
  *pointer = symbol;
  return cudaSuccess;
}
