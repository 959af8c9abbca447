"""CUDA's runtime library through ctypes, on one that notes what it is asked and answers as it is told."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from dspark_compiler.artifact import Artifact, FileInfo
from dspark_compiler.errors import ArtifactError, DeviceError
from dspark_compiler.runtime.cuda import CudaRuntime
from dspark_compiler.runtime.gpu import Rows
from dspark_compiler.runtime.library import load_cudart
from tests.runtime import toy

# Every function gives handle 4096 and more, and fails once if it is the one that is to fail.
_SOURCE = """
#include <stdlib.h>
#include <string.h>
#define S const char
static char failing[64]; static int code; static long next = 4096; S *last = "";
void fail(S *name, int with) { strncpy(failing, name, 63); code = with; }
static int done(S *name) { last = name; if (strcmp(name, failing)) return 0; failing[0] = 0; return code; }
#define GIVES(name, ...) int name(__VA_ARGS__) { int r = done(#name); if (!r) *to = next++; return r; }
#define DOES(name, ...) int name(__VA_ARGS__) { return done(#name); }
typedef unsigned long long u64;
static int chosen = -1;
int cudaSetDevice(int i) { chosen = i; return 0; }
int chosen_device(void) { return chosen; }
int cudaMemGetInfo(u64 *a, u64 *b) { *a = 1500000000; *b = 4000000000; return 0; }
GIVES(cudaMalloc, long *to, u64 n)
DOES(cudaFree, long p)
int cudaHostAlloc(void **to, u64 n, unsigned f) { *to = malloc(n); return 0; }
int cudaFreeHost(void *p) { free(p); return 0; }
int cudaMemcpyAsync(void *a, void *b, u64 n, int kind, long s) {
  if (kind != 4 || s != 7) return 1;
  memcpy(a, b, n); return done("cudaMemcpyAsync"); }
int cudaMemcpy2DAsync(char *a, u64 p, char *b, u64 q, u64 w, u64 h, int kind, long s) {
  if (kind != 4 || s != 7) return 1;
  for (u64 i = 0; i < h; i++) memcpy(a + i * p, b + i * q, w);
  return 0; }
int cudaMemsetAsync(void *a, int v, u64 n, long s) { memset(a, v, n); return 0; }
GIVES(cudaStreamCreateWithFlags, long *to, unsigned f)
DOES(cudaStreamSynchronize, long s)
int cudaStreamBeginCapture(long s, int mode) { return mode == 2 ? done("cudaStreamBeginCapture") : 1; }
GIVES(cudaStreamEndCapture, long s, long *to)
GIVES(cudaEventCreateWithFlags, long *to, unsigned f)
DOES(cudaEventRecord, long e, long s)
DOES(cudaEventSynchronize, long e)
int cudaEventElapsedTime(float *to, long a, long b) { *to = 250; return 0; }
int cudaGraphInstantiate(long *to, long g, u64 flags) {
  if (flags) return 1;
  *to = g + 100; return done("cudaGraphInstantiate"); }
static int kinds[4] = {0, 1, 0, 0}, shared[4] = {0, 0, 65536, 0}, carved[4];
int cudaGraphGetNodes(long g, long *to, u64 *n) {
  for (long i = 0; to && i < 4; i++) to[i] = i + 1;
  *n = 4; return 0; }
int cudaGraphNodeGetType(long n, int *to) { *to = kinds[n - 1]; return 0; }
int cudaGraphKernelNodeSetAttribute(long n, int which, unsigned *v) {
  if (which != 14) return 1;
  carved[n - 1] = *v; return 0; }
static int params_of(long n, unsigned *p) { p[8] = shared[n - 1]; return 0; }
int cudaGetDriverEntryPointByVersion(S *name, void **to, unsigned version, u64 flags, int *status) {
  *to = params_of;
  return version < 12000 || flags || strcmp(name, "cuGraphKernelNodeGetParams"); }
int carveout(int n) { return carved[n]; }
DOES(cudaGraphDestroy, long g)
DOES(cudaGraphLaunch, long g, long s)
DOES(cudaGraphExecDestroy, long g)
int cudaGetLastError(void) { return 0; }
S *cudaGetErrorString(int c) { return c == 2 ? "out of memory" : "unspecified launch failure"; }
S *last_called(void) { return last; }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    path: Path = tmp_path_factory.mktemp("cudart") / "libcudart.so"
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", str(path)]
    subprocess.run(command, input=_SOURCE.encode(), check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.last_called.restype = ctypes.c_char_p
    return loaded


def test_memory_and_copies(library: ctypes.CDLL) -> None:
    cuda = CudaRuntime(library)
    assert cuda.memory() == (1_500_000_000, 4_000_000_000)
    assert cuda.allocate(10) >= 4096
    one, other = cuda.pinned(64), cuda.pinned(64)
    assert not one.any()
    one[:] = range(64)
    cuda.copy(other.ctypes.data, one.ctypes.data, 20, 7)
    assert other[:21].tolist() == [*range(20), 0]
    other[:] = 0
    cuda.copy_rows(Rows(other.ctypes.data + 1, 8), Rows(one.ctypes.data, 16), 3, 2, 7)
    assert other[:13].tolist() == [0, 0, 1, 2, 0, 0, 0, 0, 0, 16, 17, 18, 0]
    cuda.zero(other.ctypes.data, 64, 7)
    assert not other.any()


def test_streams_events_and_graphs(library: ctypes.CDLL) -> None:
    cuda = CudaRuntime(library)
    stream = cuda.stream()
    cuda.begin_capture(stream)
    graph = cuda.end_capture(stream)
    assert library.last_called() == b"cudaGraphDestroy"  # the instance is kept, what it was made from is not
    # The second node is no kernel, and the third wants memory of its own.
    assert [library.carveout(node) for node in range(4)] == [28, 0, 0, 28]
    cuda.launch(graph, stream)
    cuda.destroy(graph)
    assert library.last_called() == b"cudaGraphExecDestroy"
    cuda.abandon_capture(stream)
    event = cuda.event()
    cuda.record(event, stream)
    cuda.wait(event)
    assert cuda.seconds(event, event) == 0.25
    cuda.synchronize(stream)


def test_what_is_made_is_made_on_the_gpu_that_was_asked_for(library: ctypes.CDLL) -> None:
    first, third = CudaRuntime(library), CudaRuntime(library, 2)
    makes = [lambda gpu: gpu.allocate(1), lambda gpu: gpu.pinned(1), CudaRuntime.stream, CudaRuntime.event]
    for make in (*makes, CudaRuntime.memory):
        for gpu, number in ((third, 2), (first, 0)):
            make(gpu)
            assert library.chosen_device() == number


def test_failures_are_one_line(library: ctypes.CDLL) -> None:
    cuda = CudaRuntime(library)
    library.fail(b"cudaStreamSynchronize", 719)
    with pytest.raises(DeviceError, match=r"^cudaStreamSynchronize: unspecified launch failure \(error 719\)$"):
        cuda.synchronize(7)
    library.fail(b"cudaMalloc", 2)
    with pytest.raises(DeviceError, match=r"^cudaMalloc: out of memory \(error 2\); 1\.50 of 4\.00 GB are free$"):
        cuda.allocate(1 << 40)
    assert cuda.allocate(1)


def test_what_a_lost_gpu_does_not_take_back_is_nobodys_business(library: ctypes.CDLL) -> None:
    cuda = CudaRuntime(library)
    for name, give_back in ((b"cudaFree", cuda.release), (b"cudaGraphExecDestroy", cuda.destroy)):
        library.fail(name, 719)
        give_back(4096)
        assert library.last_called() == name


def test_an_artifact_without_the_library_or_with_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"lacks CUDA's runtime library, lib/libcudart\.so\.\*; compile again"):
        load_cudart(Artifact(tmp_path, toy.manifest()))
    files = {"lib/libcudart.so.13": FileInfo(1, "0" * 64)}
    with pytest.raises(ArtifactError, match=r"libcudart\.so\.13: cannot be loaded: .*; compile again"):
        load_cudart(Artifact(tmp_path, toy.manifest(files=files)))
