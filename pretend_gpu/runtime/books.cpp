#include "books.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace books {

std::recursive_mutex mutex;
Counts counts;
std::set<Capture*> active;
std::map<char*, Block> device_blocks;
std::map<char*, Block> pinned_blocks;
std::map<int, size_t> used;
std::string broken_rule;
bool fails_at_kernels = true;
void (*run_node)(long graph, long node) = nullptr;
void (*capture_ended)(long graph, int is_valid) = nullptr;
thread_local int current_device = 0;
thread_local int last_error = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

namespace {
std::map<int, Stream> default_streams;
FILE* log_file = nullptr;

int number_from(const char* variable, int otherwise) {
  const char* text = getenv(variable);
  return text == nullptr ? otherwise : atoi(text);
}

// Finds the capture that forbids a call of this thread that may synchronise or allocate.
Capture* forbidding_capture() {
  if (thread_mode == cudaStreamCaptureModeRelaxed) return nullptr;
  for (Capture* capture : active) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (pthread_equal(capture->thread, pthread_self())) return capture;
    if (thread_mode == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal) return capture;
  }
  return nullptr;
}

}  // namespace

int num_devices() { return number_from("PRETEND_GPU_COUNT", 1); }
int capability() { return number_from("PRETEND_GPU_CAPABILITY", 80); }
size_t memory_limit() { return size_t(number_from("PRETEND_GPU_MEMORY_MIB", 80 << 10)) << 20; }

Stream* stream_of(void* handle) {
  if (reinterpret_cast<size_t>(handle) > 2) return static_cast<Stream*>(handle);
  return &default_streams.try_emplace(current_device, Stream{0, current_device, true}).first->second;
}

std::string name_of(const Stream* stream) { return "stream " + std::to_string(stream->id); }

void note(const std::string& line) {
  if (log_file == nullptr) return;
  fprintf(log_file, "%s\n", line.c_str());
  fflush(log_file);
}

int broken(int error, const std::string& rule) {
  counts.broken_rules++;
  broken_rule = rule;
  last_error = error;
  note("BROKEN RULE " + rule);
  return error;
}

int check_allowed(const std::string& call) {
  Capture* capture = forbidding_capture();
  if (capture == nullptr) return 0;
  capture->is_invalid = true;
  return broken(cudaErrorStreamCaptureUnsupported, call + " during a capture");
}

int issue(Stream* stream, const std::string& what, const Node& node) {
  if (Capture* capture = stream->capture) {
    int number = ++capture->num_issued[stream];
    capture->known[stream][stream] = number;
    capture->graph->nodes.push_back(node);
    counts.captured++;
    note("captured on " + name_of(stream) + ": " + what);
    return 0;
  }
  for (Capture* capture : active) {
    if (!pthread_equal(capture->thread, pthread_self())) continue;
    capture->is_invalid = true;
    return broken(cudaErrorStreamCaptureUnsupported,
                  what + " on " + name_of(stream) + " escapes the capture of its thread: it would not be replayed");
  }
  note(name_of(stream) + ": " + what);
  return 0;
}

const Block* block_at(const std::map<char*, Block>& blocks, const void* pointer) {
  char* address = static_cast<char*>(const_cast<void*>(pointer));
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return nullptr;
  auto found = std::prev(after);
  return address < found->first + found->second.num_bytes ? &found->second : nullptr;
}

void run_now(const Node& node) {
  if (node.kind == Node::copy && node.num_bytes) memmove(node.to, node.from, node.num_bytes);
  if (node.kind == Node::fill) memset(node.to, node.value, node.num_bytes);
}

void set_log(const char* path) {
  Lock lock(mutex);
  if (log_file != nullptr) fclose(log_file);
  log_file = path == nullptr ? nullptr : fopen(path, "w");
}

}  // namespace books

using namespace books;

// ---- What operations.py, graphs.py and runtime.py call

PUBLIC void pretend_gpu_log(const char* path) { set_log(path); }

PUBLIC void pretend_gpu_set_callbacks(void (*run)(long, long), void (*ended)(long, int)) {
  run_node = run;
  capture_ended = ended;
}

PUBLIC void pretend_gpu_fail_at_kernels(int fails) { fails_at_kernels = fails; }

PUBLIC void pretend_gpu_counts(Counts* copy) {
  Lock lock(mutex);
  *copy = counts;
}

PUBLIC const char* pretend_gpu_broken_rule() { return broken_rule.c_str(); }

// Returns the id of the capture that the stream takes part in, or 0.
PUBLIC long pretend_gpu_capture(void* handle) {
  Lock lock(mutex);
  Capture* capture = stream_of(handle)->capture;
  return capture == nullptr ? 0 : capture->id;
}

// Launches operation `number` of the capture, or an operation that the caller runs at once; returns CUDA's error.
PUBLIC int pretend_gpu_launch(void* handle, const char* name, long number) {
  Lock lock(mutex);
  counts.launches++;
  return issue(stream_of(handle), name, Node{Node::kernel, number});
}

// A copy between host and device by operations.py; returns CUDA's error.
PUBLIC int pretend_gpu_transfer(void* handle, const void* on_host, long number) {
  Lock lock(mutex);
  counts.copies++;
  Stream* stream = stream_of(handle);
  if (stream->capture != nullptr && !block_at(pinned_blocks, on_host)) {
    stream->capture->is_invalid = true;
    return broken(cudaErrorStreamCaptureUnsupported, "a copy of pageable memory during a capture");
  }
  return issue(stream, "copy between host and device", Node{Node::kernel, number});
}
