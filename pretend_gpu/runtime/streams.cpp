// Streams and events.

#include "books.h"

using namespace books;

// ---- Streams

static int next_stream = 1;

PUBLIC cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
  Lock lock(mutex);
  bool is_blocking = (flags & cudaStreamNonBlocking) == 0;
  *handle = reinterpret_cast<cudaStream_t>(new Stream{next_stream++, current_device, is_blocking});
  return cudaSuccess;
}

PUBLIC cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

PUBLIC cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }
PUBLIC cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }  // events may still refer to it

PUBLIC cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) {
  *priority = 0;
  return cudaSuccess;
}

static cudaError_t check_idle(Capture* capture, const std::string& call) {
  if (capture != nullptr) {
    capture->is_invalid = true;
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureUnsupported, call + " of captured work"));
  }
  return static_cast<cudaError_t>(check_allowed(call));
}

PUBLIC cudaError_t cudaStreamQuery(cudaStream_t handle) {
  Lock lock(mutex);
  return check_idle(stream_of(handle)->capture, "cudaStreamQuery");
}

PUBLIC cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock(mutex);
  counts.waits++;
  note("wait for " + name_of(stream_of(handle)));
  return check_idle(stream_of(handle)->capture, "cudaStreamSynchronize");
}

PUBLIC cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  Lock lock(mutex);
  Stream* stream = stream_of(handle);
  Event* event = reinterpret_cast<Event*>(event_handle);
  if (!event->is_recorded) return cudaSuccess;
  if (event->capture_id == 0) {
    if (stream->capture == nullptr) return cudaSuccess;
    stream->capture->is_invalid = true;
    return static_cast<cudaError_t>(
        broken(cudaErrorStreamCaptureIsolation, "a captured stream waits for an event from outside of the capture"));
  }
  if (!active.count(event->capture) || event->capture->id != event->capture_id)
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureIsolation, "a wait for an event of a finished capture"));
  if (stream->capture != nullptr && stream->capture != event->capture)
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureMerge, "one stream would join two captures"));
  if (stream->capture == nullptr && stream->id == 0)
    return static_cast<cudaError_t>(
        broken(cudaErrorStreamCaptureImplicit, "the default stream waits for an event of a capture"));
  stream->capture = event->capture;
  for (auto& [other, number] : event->known) {
    int& known = event->capture->known[stream][other];
    if (number > known) known = number;
  }
  return cudaSuccess;
}

PUBLIC cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void* data) {
  Lock lock(mutex);
  Stream* stream = stream_of(handle);
  if (stream->capture != nullptr)
    return static_cast<cudaError_t>(broken(cudaErrorStreamCaptureUnsupported, "a host function in a capture"));
  function(data);
  return cudaSuccess;
}

// ---- Events

PUBLIC cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }

PUBLIC cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<Event*>(event);
  return cudaSuccess;
}

PUBLIC cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle) {
  Lock lock(mutex);
  Event* event = reinterpret_cast<Event*>(event_handle);
  Stream* stream = stream_of(handle);
  event->is_recorded = true;
  event->time = Clock::now();
  event->capture = stream->capture;
  event->capture_id = stream->capture == nullptr ? 0 : stream->capture->id;
  if (stream->capture != nullptr) event->known = stream->capture->known[stream];
  return cudaSuccess;
}

PUBLIC cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

static Capture* capture_of(cudaEvent_t handle) {
  Event* event = reinterpret_cast<Event*>(handle);
  return event->is_recorded && active.count(event->capture) ? event->capture : nullptr;
}

PUBLIC cudaError_t cudaEventQuery(cudaEvent_t event) {
  Lock lock(mutex);
  return check_idle(capture_of(event), "cudaEventQuery");
}

PUBLIC cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  Lock lock(mutex);
  counts.waits++;
  return check_idle(capture_of(event), "cudaEventSynchronize");
}

PUBLIC cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t begin, cudaEvent_t end) {
  auto passed = reinterpret_cast<Event*>(end)->time - reinterpret_cast<Event*>(begin)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(passed).count();
  return cudaSuccess;
}
