// Captures, and the graphs that they make.

#include "books.h"

#include <utility>

using namespace books;

// ---- Capture

static long next_capture = 1;

PUBLIC cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock(mutex);
  Stream* stream = stream_of(handle);
  if (stream->id == 0)
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureUnsupported, "a capture on the default stream"));
  long id = next_capture++;
  Capture* capture = new Capture{id, mode, pthread_self(), stream, new Graph{id, {}}};
  stream->capture = capture;
  active.insert(capture);
  note("capture " + std::to_string(id) + " begins on " + name_of(stream));
  return cudaSuccess;
}

// Describes work of the capture that its first stream does not wait for; empty: there is none.
static std::string unjoined_work(Capture* capture) {
  for (auto& [stream, number] : capture->num_issued)
    if (capture->known[capture->origin][stream] < number) return name_of(stream) + " is not joined when the capture ends";
  return "";
}

PUBLIC cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  int error = 0;
  long id = 0;
  {
    Lock lock(mutex);
    Stream* stream = stream_of(handle);
    Capture* capture = stream->capture;
    *graph = nullptr;
    if (capture == nullptr) return static_cast<cudaError_t>(broken(cudaErrorIllegalState, "no capture to end"));
    id = capture->id;
    std::string unjoined = unjoined_work(capture);
    if (capture->is_invalid) error = last_error = cudaErrorStreamCaptureInvalidated;
    else if (!unjoined.empty()) error = broken(cudaErrorStreamCaptureUnjoined, unjoined);
    else *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
    for (auto& [other, known] : capture->known) other->capture = nullptr;
    for (auto& [other, number] : capture->num_issued) other->capture = nullptr;
    stream->capture = nullptr;
    active.erase(capture);
    note("capture " + std::to_string(id) + " ends with " + std::to_string(capture->graph->nodes.size()) + " operations");
  }
  if (capture_ended != nullptr) capture_ended(id, error == 0);  // takes Python's lock, so ours is free
  return static_cast<cudaError_t>(error);
}

PUBLIC cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  Capture* capture = stream_of(handle)->capture;
  *status = capture == nullptr      ? cudaStreamCaptureStatusNone
            : capture->is_invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus* status, unsigned long long* id,
                                            cudaGraph_t* graph, const cudaGraphNode_t** dependencies,
                                            const cudaGraphEdgeData** edges, size_t* num_dependencies) {
  Lock lock(mutex);
  cudaStreamIsCapturing(handle, status);
  Capture* capture = stream_of(handle)->capture;
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (num_dependencies) *num_dependencies = 0;
  return cudaSuccess;
}

PUBLIC cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<Graph*>(graph)->nodes.size();
  return cudaSuccess;
}

PUBLIC cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }  // its executable is the same object
PUBLIC cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }

PUBLIC cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
  Graph* graph = reinterpret_cast<Graph*>(executable);
  {
    Lock lock(mutex);
    counts.launches++;
    if (int error = issue(stream_of(handle), "graph " + std::to_string(graph->id), Node{Node::kernel}))
      return static_cast<cudaError_t>(error);
  }
  for (const Node& node : graph->nodes) {
    if (node.kind != Node::kernel) run_now(node);
    else if (node.number >= 0 && run_node != nullptr) run_node(graph->id, node.number);
  }
  return cudaSuccess;
}
