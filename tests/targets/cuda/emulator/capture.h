// What the emulated libraries share: the graph that is being captured.
#pragma once
#include <functional>
#include <vector>

using Graph = std::vector<std::function<int()>>;
struct Capture { void* stream = nullptr; Graph* graph = nullptr; bool broken = false; };
// Every library has one of these: they share that of the library that is loaded first.
extern "C" { Capture emulated_capture; }

namespace {
constexpr int kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureImplicit = 906;

// Run something that was put on a stream, or keep it for the graph.
int on_stream(void* stream, std::function<int()> work) {
  auto& capture = emulated_capture;
  if (!capture.graph) return work();
  if (stream != capture.stream) {  // the default stream would wait for the captured one
    capture.broken = true;
    return kCaptureImplicit;
  }
  capture.graph->push_back(std::move(work));
  return 0;
}
}  // namespace
