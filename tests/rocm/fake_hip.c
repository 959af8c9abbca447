// A libamdhip64 that computes nothing and checks everything: arguments, order, and that what is used is alive.
//
// FAKE_HIP_GPUS: architectures of its GPUs, with commas. FAKE_HIP_MEMORY: bytes of each. FAKE_HIP_FAIL: FUNCTION:N:CODE,
// the Nth call of a function fails so; CODE 719 loses the device: everything fails from then on. FAKE_HIP_LOG: a file
// that gets a line for each call worth knowing, and "WRONG" with a reason where a caller is.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidDevice = 101, kNoBinary = 209, kNotFound = 500, kLost = 719 };
enum { kMost = 1 << 14, kNodes = 1 << 12 };

typedef struct { char *begin; size_t size; int device; int host; } Block;
typedef struct { char *to; const char *from; size_t pitch_to, pitch_from, width, rows; int value; } Copy;  // from 0: set
typedef struct { int kernels, copies; Copy copy[kNodes]; } Graph;
typedef struct { const unsigned char *image; int device, alive; } Module;
typedef struct { Module *module; uint32_t argument_bytes; } Function;
typedef struct { int device, capturing; Graph *graph; } Stream;
typedef struct { int device, timed, recorded; } Event;

static Block blocks[kMost];
static int block_count, lost, launches;
static _Thread_local int selected;  // as HIP has it
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;  // around blocks
static size_t taken;
static struct { Stream s[256]; int n; } streams;

static void say(const char *form, ...) {
  const char *path = getenv("FAKE_HIP_LOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (!file) return;
  va_list list;
  va_start(list, form);
  vfprintf(file, form, list);
  va_end(list);
  fputc('\n', file);
  fclose(file);
}

#define WRONG(...) do { say("WRONG " __VA_ARGS__); return kInvalidValue; } while (0)

static int fails(const char *name) {
  static int calls;
  const char *told = getenv("FAKE_HIP_FAIL");
  if (lost) return kLost;
  if (!told || strncmp(told, name, strlen(name)) || told[strlen(name)] != ':') return 0;
  int number = 0, code = 0;
  sscanf(told + strlen(name), ":%d:%d", &number, &code);
  if (++calls != number) return 0;
  lost = code == kLost;
  return code;
}
#define ENTER(name) do { int code = fails(#name); if (code) return code; } while (0)

static const char *gpus(void) { const char *list = getenv("FAKE_HIP_GPUS"); return list ? list : "gfx942:sramecc+:xnack-"; }
static size_t total(void) { const char *size = getenv("FAKE_HIP_MEMORY"); return size ? strtoull(size, 0, 10) : (size_t)1 << 30; }

static int count(void) {
  int number = *gpus() != 0;
  for (const char *at = gpus(); *at; at++) number += *at == ',';
  return number;
}

static void arch_of(int device, char *to) {
  const char *at = gpus();
  while (device--) at = strchr(at, ',') + 1;
  size_t size = strcspn(at, ",");
  memcpy(to, at, size);
  to[size] = 0;
}

// The block that holds so many bytes; one of no size where none does.
static Block find(const void *address, size_t size) {
  Block found = {0};
  pthread_mutex_lock(&mutex);
  for (int i = 0; i < block_count; i++) {
    Block *b = &blocks[i];
    if ((char *)address >= b->begin && (char *)address + size <= b->begin + b->size) found = *b;
  }
  pthread_mutex_unlock(&mutex);
  return found;
}

static Stream *stream_of(void *handle) {
  Stream *s = handle;
  return s >= streams.s && s < streams.s + streams.n ? s : NULL;
}

static int allocate(void **to, size_t size, int host) {
  if (!size) WRONG("an allocation of nothing");
  pthread_mutex_lock(&mutex);
  const int fits = host || taken + size <= total();
  if (fits && !host) taken += size;
  pthread_mutex_unlock(&mutex);
  if (!fits) return kOutOfMemory;
  char *begin = aligned_alloc(256, (size + 255) / 256 * 256);
  memset(begin, 0x7f, size);
  pthread_mutex_lock(&mutex);
  blocks[block_count++] = (Block){begin, size, selected, host};
  pthread_mutex_unlock(&mutex);
  *to = begin;
  return 0;
}

static int release(void *address, int host) {
  if (!address) return 0;
  int found = 0;
  pthread_mutex_lock(&mutex);
  for (int i = 0; !found && i < block_count; i++) {
    if (blocks[i].begin != address || blocks[i].host != host) continue;
    if (!host) taken -= blocks[i].size;
    blocks[i] = blocks[--block_count];
    found = 1;
  }
  pthread_mutex_unlock(&mutex);
  if (!found) WRONG("free of what is not there");
  free(address);
  return 0;
}

static void run(const Copy *c) {
  for (size_t i = 0; i < c->rows; i++) {
    if (c->from) memmove(c->to + i * c->pitch_to, c->from + i * c->pitch_from, c->width);
    else memset(c->to + i * c->pitch_to, c->value, c->width);
  }
}

static int put(Copy c, void *stream) {
  Stream *s = stream_of(stream);
  if (stream && !s) WRONG("a copy on no stream");
  const Block to = find(c.to, (c.rows - 1) * c.pitch_to + c.width);
  const Block from = c.from ? find(c.from, (c.rows - 1) * c.pitch_from + c.width) : to;
  if (!to.begin && !from.begin) WRONG("a copy between places that are neither on the GPU nor pinned");
  if (s && s->capturing) {
    if (!to.begin || !from.begin) WRONG("memory that is not pinned in a capture");
    s->graph->copy[s->graph->copies++] = c;
    return 0;
  }
  run(&c);
  return 0;
}

int hipGetDeviceCount(int *to) { *to = count(); return *to ? 0 : kNoDevice; }
int hipGetLastError(void) { return 0; }
int hipSetDevice(int device) {
  ENTER(hipSetDevice);
  if (device < 0 || device >= count()) return kInvalidDevice;
  selected = device;
  return 0;
}
int hipDeviceGetName(char *to, int size, int device) { snprintf(to, size, "Fake Instinct %d", device); return 0; }

// As hip_runtime_api.h declares hipDeviceProp_tR0600, without names for what nobody here reads.
typedef struct {
  char name[256], uuid[16], luid[8];
  unsigned mask;
  size_t memory;
  char rest[864];
  char arch[256], after[56];
} Properties;
_Static_assert(offsetof(Properties, memory) == 288 && offsetof(Properties, arch) == 1160, "layout");

int hipGetDevicePropertiesR0600(Properties *to, int device) {
  memset(to, 0, sizeof *to);
  hipDeviceGetName(to->name, 256, device);
  to->memory = total();
  arch_of(device, to->arch);
  return 0;
}
int hipMemGetInfo(size_t *free_to, size_t *total_to) {
  ENTER(hipMemGetInfo);
  *free_to = total() - taken;
  *total_to = total();
  return 0;
}
int hipMalloc(void **to, size_t size) { ENTER(hipMalloc); return allocate(to, size, 0); }
int hipFree(void *address) { ENTER(hipFree); return release(address, 0); }
int hipHostMalloc(void **to, size_t size, unsigned flags) {
  ENTER(hipHostMalloc);
  if (flags) WRONG("flags of hipHostMalloc");
  return allocate(to, size, 1);
}
int hipHostFree(void *address) { return release(address, 1); }
int hipMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
  ENTER(hipMemcpyAsync);
  if (kind != 4) WRONG("kind of hipMemcpyAsync");
  return put((Copy){to, from, size, size, size, 1, 0}, stream);
}
int hipMemcpy2DAsync(void *to, size_t pitch_to, const void *from, size_t pitch_from, size_t width, size_t rows, int kind, void *stream) {
  ENTER(hipMemcpy2DAsync);
  if (kind != 4 || width > pitch_to || width > pitch_from) WRONG("hipMemcpy2DAsync");
  return put((Copy){to, from, pitch_to, pitch_from, width, rows, 0}, stream);
}
int hipMemsetAsync(void *to, int value, size_t size, void *stream) {
  ENTER(hipMemsetAsync);
  return put((Copy){to, NULL, size, size, size, 1, value}, stream);
}

int hipStreamCreateWithFlags(void **to, unsigned flags) {
  ENTER(hipStreamCreateWithFlags);
  if (flags != 1 || streams.n == 256) WRONG("hipStreamCreateWithFlags");
  streams.s[streams.n] = (Stream){selected, 0, NULL};
  *to = &streams.s[streams.n++];
  return 0;
}
int hipStreamDestroy(void *stream) { return stream_of(stream) ? 0 : kInvalidValue; }
int hipStreamSynchronize(void *stream) {
  ENTER(hipStreamSynchronize);
  Stream *s = stream_of(stream);
  if (s && s->capturing) WRONG("waiting for a stream that is captured");
  return 0;
}
int hipEventCreateWithFlags(void **to, unsigned flags) {
  ENTER(hipEventCreateWithFlags);
  if (flags != 0 && flags != 2) WRONG("flags of an event");
  Event *event = malloc(sizeof *event);
  *event = (Event){selected, !flags, 0};
  *to = event;
  return 0;
}
int hipEventRecord(Event *event, void *stream) {
  ENTER(hipEventRecord);
  if (!stream_of(stream)) WRONG("an event on no stream");
  if (event->device != stream_of(stream)->device) WRONG("an event of another device");
  event->recorded = 1;
  return 0;
}
int hipEventSynchronize(Event *event) { ENTER(hipEventSynchronize); return 0; }
int hipEventElapsedTime(float *to, Event *a, Event *b) {
  if (!a->timed || !b->timed || !a->recorded || !b->recorded) WRONG("hipEventElapsedTime");
  *to = 1;
  return 0;
}

int hipStreamBeginCapture(void *stream, int mode) {
  ENTER(hipStreamBeginCapture);
  Stream *s = stream_of(stream);
  if (!s || s->capturing || mode != 2) WRONG("hipStreamBeginCapture");
  s->capturing = 1;
  s->graph = calloc(1, sizeof(Graph));
  return 0;
}
int hipStreamEndCapture(void *stream, Graph **to) {
  Stream *s = stream_of(stream);
  if (!s || !s->capturing) WRONG("the end of no capture");
  s->capturing = 0;
  *to = s->graph;
  return fails("hipStreamEndCapture");
}
int hipGraphInstantiateWithFlags(Graph **to, Graph *graph, unsigned long long flags) {
  ENTER(hipGraphInstantiateWithFlags);
  if (flags || !graph) WRONG("hipGraphInstantiateWithFlags");
  *to = malloc(sizeof(Graph));
  **to = *graph;
  say("graph of %d kernels, %d copies", graph->kernels, graph->copies);
  return 0;
}
int hipGraphDestroy(Graph *graph) { free(graph); return 0; }
int hipGraphExecDestroy(Graph *graph) { say("graph destroyed"); free(graph); return 0; }
int hipGraphLaunch(Graph *graph, void *stream) {
  ENTER(hipGraphLaunch);
  if (!stream_of(stream) || stream_of(stream)->capturing) WRONG("a graph on no stream");
  for (int i = 0; i < graph->copies; i++) {
    if (!find(graph->copy[i].to, 1).begin) WRONG("a graph that writes what was freed");
    run(&graph->copy[i]);
  }
  launches += graph->kernels;
  return 0;
}

// ELF: what a code object says it is for, and the descriptor of a kernel, which lies at its name with ".kd".
static const struct { const char *arch; unsigned mach; } kMachs[] = {{"gfx90a", 0x3f}, {"gfx942", 0x4c}, {"gfx1100", 0x41}, {"gfx1201", 0x4e}};
#define AT(type, base, offset) (*(const type *)((base) + (offset)))

int hipModuleLoadData(Module **to, const unsigned char *image) {
  ENTER(hipModuleLoadData);
  if ((uintptr_t)image % 4096 || memcmp(image, "\177ELF", 4) || AT(uint16_t, image, 18) != 224) WRONG("no code object");
  char arch[256];
  arch_of(selected, arch);
  *strchrnul(arch, ':') = 0;
  for (size_t i = 0; i < sizeof kMachs / sizeof *kMachs; i++) {
    if (strcmp(kMachs[i].arch, arch) || (AT(uint32_t, image, 48) & 0xff) != kMachs[i].mach) continue;
    Module *module = malloc(sizeof *module);
    *module = (Module){image, selected, 1};
    *to = module;
    say("loaded for %s", arch);
    return 0;
  }
  return kNoBinary;
}
int hipModuleUnload(Module *module) { say("unloaded"); module->alive = 0; return 0; }

int hipModuleGetFunction(Function **to, Module *module, const char *name) {
  ENTER(hipModuleGetFunction);
  if (!module->alive) WRONG("a function of a module that is gone");
  const unsigned char *elf = module->image, *headers = elf + AT(uint64_t, elf, 40);
  char wanted[512];
  snprintf(wanted, sizeof wanted, "%s.kd", name);
  for (int i = 0; i < AT(uint16_t, elf, 60); i++) {
    const unsigned char *section = headers + i * AT(uint16_t, elf, 58);
    if (AT(uint32_t, section, 4) != 11) continue;  // SHT_DYNSYM
    const unsigned char *strings = elf + AT(uint64_t, headers + AT(uint32_t, section, 40) * AT(uint16_t, elf, 58), 24);
    for (uint64_t at = 0; at < AT(uint64_t, section, 32); at += 24) {
      const unsigned char *symbol = elf + AT(uint64_t, section, 24) + at;
      if (strcmp((const char *)strings + AT(uint32_t, symbol, 0), wanted)) continue;
      const unsigned char *home = headers + AT(uint16_t, symbol, 6) * AT(uint16_t, elf, 58);
      const unsigned char *descriptor = elf + AT(uint64_t, symbol, 8) - AT(uint64_t, home, 16) + AT(uint64_t, home, 24);
      *to = malloc(sizeof **to);
      **to = (Function){module, AT(uint32_t, descriptor, 8)};
      return 0;
    }
  }
  return kNotFound;
}

int hipModuleLaunchKernel(Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned x, unsigned y, unsigned z, unsigned shared, void *stream, void **params, void **extra) {
  ENTER(hipModuleLaunchKernel);
  if (!f->module->alive || f->module->device != selected) WRONG("a kernel that is not loaded here");
  if (!gx || !gy || !gz || !x || !y || !z || x * y * z > 1024 || gy > 65535 || gz > 65535) WRONG("an extent of a launch");
  if (shared || params || !extra) WRONG("parameters of a launch");
  if (extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4] != (void *)3) WRONG("the list of parameters");
  const size_t size = *(size_t *)extra[3];
  if (size != f->argument_bytes) WRONG("%zu bytes of arguments, the kernel takes %u", size, f->argument_bytes);
  for (size_t at = 0; at + 8 <= size; at += 8) {
    const void *address = (const void *)AT(uintptr_t, (char *)extra[1], at);
    const Block block = find(address, 1);
    if ((uintptr_t)address > 1ull << 40 && !block.begin) WRONG("a buffer that is not there");  // smaller: a number
    if (block.begin && !block.host && block.device != selected) WRONG("a buffer of another device");
  }
  Stream *s = stream_of(stream);
  if (stream && !s) WRONG("a kernel on no stream");
  if (s && s->capturing) s->graph->kernels++;
  else launches++;
  return 0;
}

const char *hipGetErrorString(int code) {
  switch (code) {
    case kOutOfMemory: return "out of memory";
    case kNoDevice: return "no ROCm-capable device is detected";
    case kInvalidDevice: return "invalid device ordinal";
    case kNoBinary: return "no kernel image is available for execution on the device";
    case kNotFound: return "named symbol not found";
    case kLost: return "unspecified launch failure";
    default: return "invalid argument";
  }
}

__attribute__((destructor)) static void end(void) { say("%d kernels ran, %d streams", launches, streams.n); }
