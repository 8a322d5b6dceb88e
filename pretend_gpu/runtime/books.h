// The books of a CUDA runtime without a GPU: streams, events, captures and allocations, kept by CUDA's rules.
//
// Preloaded, this library takes the place of libcudart and libcuda under torch's CUDA build. Device memory is memory of the
// host, filled with NaN. Calls that CUDA forbids fail with CUDA's error codes. A kernel is an entry in the books: what it
// computes is up to operations.py, which runs each operation of torch on the CPU and tells this library of its launch.
// Everything a launch issues has happened when the launch returns, so a race between streams does not show in the values.

#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include <chrono>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace books {

using Clock = std::chrono::steady_clock;


// One operation of a graph: a copy, a fill, or the number of an operation that the callback runs.
struct Node {
  enum Kind { kernel, copy, fill } kind;
  long number = -1;
  void* to = nullptr;
  const void* from = nullptr;
  size_t num_bytes = 0;
  int value = 0;
};

struct Graph {
  long id;
  std::vector<Node> nodes;
};

struct Stream;

struct Capture {
  long id;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  Stream* origin;
  Graph* graph;
  bool is_invalid = false;
  std::map<Stream*, int> num_issued;                // operations that each stream has issued in this capture
  std::map<Stream*, std::map<Stream*, int>> known;  // for each stream, the operations of the others before its next one
};

struct Stream {
  int id;
  int device;
  bool is_blocking;
  Capture* capture = nullptr;
};

struct Event {
  bool is_recorded = false;
  long capture_id = 0;  // 0: recorded outside of a capture
  Capture* capture = nullptr;
  std::map<Stream*, int> known;
  Clock::time_point time;
};

struct Block {
  size_t num_bytes;
  int device;
};

struct Counts {
  long launches, copies, fills, waits, allocations, captured, broken_rules;
};

using Lock = std::lock_guard<std::recursive_mutex>;

extern std::recursive_mutex mutex;
extern Counts counts;
extern std::set<Capture*> active;  // captures that go on
extern std::map<char*, Block> device_blocks;
extern std::map<char*, Block> pinned_blocks;
extern std::map<int, size_t> used;  // bytes by device
extern std::string broken_rule;     // the last one, in words
extern bool fails_at_kernels;       // a kernel of torch's own computes nothing here
extern void (*run_node)(long graph, long node);
extern void (*capture_ended)(long graph, int is_valid);
extern thread_local int current_device;
extern thread_local int last_error;
extern thread_local cudaStreamCaptureMode thread_mode;

int num_devices();
int capability();
size_t memory_limit();

// Returns the stream of a handle; 0, 1 and 2 are the legacy default stream and its names.
Stream* stream_of(void* handle);
std::string name_of(const Stream* stream);

// Writes a line to the log, if there is one.
void note(const std::string& line);

// Notes a broken rule and returns its error, for the caller to return.
int broken(int error, const std::string& rule);

// Returns an error if a capture forbids a call of this thread that may wait or allocate.
int check_allowed(const std::string& call);

// Enters an operation in the books: into the graph that its stream captures, or as run now; returns the error.
int issue(Stream* stream, const std::string& what, const Node& node);

// Returns the block that holds an address, or nullptr.
const Block* block_at(const std::map<char*, Block>& blocks, const void* pointer);

// Runs a copy or a fill.
void run_now(const Node& node);

}  // namespace books
