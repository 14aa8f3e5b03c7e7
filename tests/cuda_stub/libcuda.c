/* A libcuda without a GPU, for tests: device memory is host memory, streams are queues.

   It is stricter than a driver. Work of a stream is done only when somebody waits for it, so a result
   read too early, or a staging buffer used again too early, is wrong every time and not now and then.
   Copies and pointer arguments must lie in live allocations, calls need a current context, and
   everything that is made is counted until it is destroyed.

   A "cubin" is text: a line "name pppii 49152" for each kernel (p pointer, i int32, f float; most dynamic
   shared memory that it needs). A real one is read as far as a launch must agree with it: names, sizes of
   parameters, threads of a block. A kernel runs by calling back: stub_set_hook. Any call can be made to
   fail: stub_fail. */
#define _GNU_SOURCE
#include <elf.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
enum { OK = 0, BAD_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, BAD_DEVICE = 101, BAD_IMAGE = 200,
       NO_CONTEXT = 201, BAD_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, BAD_ADDRESS = 700,
       NOT_SUPPORTED = 801, IN_CAPTURE = 901 };
enum { COPY, SET, KERNEL, RECORD, WAIT };
enum { MEMORY, HOST, STREAM, EVENT, MODULE, GRAPH, EXEC, CONTEXT, KINDS };
#define MOST_PARAMS 48
#define MOST_NAME 256
#define MOST_BLOCKS 4096
#define MOST_NAMES 128
#define MOST_DEVICES 8

typedef struct { char name[MOST_NAME], kinds[MOST_PARAMS + 1]; int shared, allowed; unsigned threads; } Function;
typedef struct { int count; Function functions[8]; } Module;
typedef struct { struct Stream *stream; int recorded; u64 ticket; double ms; } Event;
typedef struct { int what; void *to; const void *from; size_t size; int byte, to_device, from_device; Event *event; u64 ticket;
                 Function *function; unsigned grid[3], block, shared; u64 args[MOST_PARAMS]; } Op;
typedef struct { Op *ops; int count, room; } List;
typedef struct Stream { List queue, captured; int capturing; u64 done, given; double ms; } Stream;
typedef struct { u64 start; size_t size; } Range;
typedef int (*Hook)(const char *, const unsigned *, const u64 *);

static pthread_mutex_t lock;
static __thread void *current;
static int inited, sticky, devices = 1, version_[MOST_DEVICES], shared_most = 232448;
static size_t total_ = (size_t)256 << 20, used_;
static Range device_[MOST_BLOCKS], host_[MOST_BLOCKS];
static long live[KINDS], unpinned, launches, replays, calls_of[MOST_NAMES];
static const char *names[MOST_NAMES];
static char fail_name[64]; static long fail_after; static int fail_code;
static Hook hook; static int captures;
#define MOST_STREAMS 64
static Stream *streams_[MOST_STREAMS];

__attribute__((constructor)) static void start(void) {
  pthread_mutexattr_t a; pthread_mutexattr_init(&a); pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&lock, &a);
}
static long *count_of(const char *name) {
  for (int i = 0; i < MOST_NAMES; i++) { if (!names[i]) names[i] = strdup(name); if (!strcmp(names[i], name)) return &calls_of[i]; }
  abort();
}
static int begin(const char *name, int needs_context) {
  ++*count_of(name);
  if (fail_code && !strcmp(name, fail_name) && fail_after-- == 0) { int c = fail_code; fail_code = 0; return c; }
  if (sticky) return sticky;
  return needs_context && !current ? NO_CONTEXT : OK;
}
#define BEGIN(name, ctx) pthread_mutex_lock(&lock); int e = begin(name, ctx); if (e) goto end;
#define END end: pthread_mutex_unlock(&lock); return e;
#define FAIL(code) do { e = (code); goto end; } while (0)

static int inside(Range *ranges, u64 at, size_t size) {
  for (int i = 0; i < MOST_BLOCKS; i++) if (ranges[i].size && at >= ranges[i].start && at + size <= ranges[i].start + ranges[i].size) return 1;
  return 0;
}
static Op *push(List *l) {
  if (l->count == l->room) { l->room = l->room ? 2 * l->room : 64; l->ops = realloc(l->ops, l->room * sizeof(Op)); }
  return memset(&l->ops[l->count++], 0, sizeof(Op));
}
static Op *add(Stream *s, int what) {
  Op *o = push(s->capturing ? &s->captured : &s->queue); o->what = what; if (!s->capturing) o->ticket = ++s->given; return o;
}
static void run(Stream *s, Op *o);
static void drain(Stream *s, u64 upto) {
  while (s->queue.count && s->done < upto) {
    Op o = s->queue.ops[0];
    memmove(s->queue.ops, s->queue.ops + 1, --s->queue.count * sizeof(Op));
    s->done = o.ticket;
    run(s, &o);
  }
}
static void run(Stream *s, Op *o) {
  if (sticky) return;
  if (o->what == COPY || o->what == SET) {  /* what lay in live memory when it was queued may be gone */
    if ((o->to_device && !inside(device_, (u64)o->to, o->size)) || (o->from_device && !inside(device_, (u64)o->from, o->size))) { sticky = BAD_ADDRESS; return; }
  }
  if (o->what == COPY) memcpy(o->to, o->from, o->size);
  if (o->what == SET) memset(o->to, o->byte, o->size);
  if (o->what == RECORD) o->event->ms = s->ms;
  if (o->what == WAIT && o->event->stream) { drain(o->event->stream, o->size); if (o->event->stream->ms > s->ms) s->ms = o->event->stream->ms; }
  if (o->what == KERNEL) {
    s->ms += 0.001 * o->grid[0];
    if (hook) { int e = hook(o->function->name, o->grid, o->args); if (e) sticky = e; }
  } else if (o->what == COPY || o->what == SET) s->ms += 1e-6 * (o->size / 1024.0);
}

/* devices and contexts */
int cuInit(unsigned f) { BEGIN("cuInit", 0) inited = 1; if (!devices) FAIL(NO_DEVICE); END }
int cuDriverGetVersion(int *v) { BEGIN("cuDriverGetVersion", 0) *v = 13000; END }
int cuDeviceGetCount(int *n) { BEGIN("cuDeviceGetCount", 0) *n = devices; END }
int cuDeviceGet(int *d, int n) { BEGIN("cuDeviceGet", 0) if (n < 0 || n >= devices) FAIL(BAD_DEVICE); *d = n; END }
int cuDeviceGetName(char *t, int n, int d) { BEGIN("cuDeviceGetName", 0) snprintf(t, n, "Stub GPU %d", d); END }
int cuDeviceGetAttribute(int *v, int a, int d) {
  BEGIN("cuDeviceGetAttribute", 0)
  *v = a == 75 ? version_[d] / 10 : a == 76 ? version_[d] % 10 : a == 97 ? shared_most : a == 16 ? 132 : 0;
  END
}
int cuDevicePrimaryCtxRetain(void **c, int d) { BEGIN("cuDevicePrimaryCtxRetain", 0) live[CONTEXT]++; *c = (void *)(u64)(0x1000 + d); END }
int cuDevicePrimaryCtxRelease(int d) { BEGIN("cuDevicePrimaryCtxRelease", 0) live[CONTEXT]--; END }
int cuCtxSetCurrent(void *c) { BEGIN("cuCtxSetCurrent", 0) current = c; END }

int cuCtxSynchronize(void) {
  BEGIN("cuCtxSynchronize", 1)
  for (int i = 0; i < MOST_STREAMS; i++) if (streams_[i]) drain(streams_[i], streams_[i]->given);
  e = sticky;
  END
}

/* memory */
int cuMemGetInfo(size_t *f, size_t *t) { BEGIN("cuMemGetInfo", 1) *f = total_ - used_; *t = total_; END }
int cuMemAlloc(u64 *p, size_t n) {
  BEGIN("cuMemAlloc", 1)
  if (captures) FAIL(IN_CAPTURE);
  if (!n) FAIL(BAD_VALUE);
  if (used_ + n > total_) FAIL(OUT_OF_MEMORY);
  for (int i = 0; i < MOST_BLOCKS; i++) if (!device_[i].size) {
    void *m; if (posix_memalign(&m, 256, n)) FAIL(OUT_OF_MEMORY);
    memset(m, 0xA5, n); device_[i] = (Range){(u64)m, n}; used_ += n; live[MEMORY]++; *p = (u64)m; goto end;
  }
  e = OUT_OF_MEMORY;
  END
}
int cuMemFree(u64 p) {
  BEGIN("cuMemFree", 1)
  for (int i = 0; i < MOST_BLOCKS; i++) if (device_[i].size && device_[i].start == p) {
    used_ -= device_[i].size; live[MEMORY]--; memset((void *)p, 0x5A, device_[i].size); free((void *)p); device_[i].size = 0; goto end;
  }
  e = BAD_VALUE;
  END
}
int cuMemHostRegister(void *p, size_t n, unsigned f) {
  BEGIN("cuMemHostRegister", 1)
  for (int i = 0; i < MOST_BLOCKS; i++) if (!host_[i].size) { host_[i] = (Range){(u64)p, n}; live[HOST]++; goto end; }
  END
}
int cuMemHostUnregister(void *p) {
  BEGIN("cuMemHostUnregister", 1)
  for (int i = 0; i < MOST_BLOCKS; i++) if (host_[i].size && host_[i].start == (u64)p) { host_[i].size = 0; live[HOST]--; goto end; }
  e = BAD_VALUE;
  END
}
static int copy(u64 to, u64 from, size_t n, Stream *s, int to_device, int from_device) {
  if ((to_device && !inside(device_, to, n)) || (from_device && !inside(device_, from, n))) return BAD_VALUE;
  if ((!to_device && !inside(host_, to, n)) || (!from_device && !inside(host_, from, n))) unpinned++;
  Op *o = add(s, COPY); o->to = (void *)to; o->from = (void *)from; o->size = n; o->to_device = to_device; o->from_device = from_device;
  return OK;
}
int cuMemcpyHtoDAsync(u64 d, void *h, size_t n, Stream *s) { BEGIN("cuMemcpyHtoDAsync", 1) e = copy(d, (u64)h, n, s, 1, 0); END }
int cuMemcpyDtoHAsync(void *h, u64 d, size_t n, Stream *s) { BEGIN("cuMemcpyDtoHAsync", 1) e = copy((u64)h, d, n, s, 0, 1); END }
int cuMemcpyDtoDAsync(u64 d, u64 f, size_t n, Stream *s) { BEGIN("cuMemcpyDtoDAsync", 1) e = copy(d, f, n, s, 1, 1); END }
int cuMemsetD8Async(u64 d, unsigned char b, size_t n, Stream *s) {
  BEGIN("cuMemsetD8Async", 1)
  if (!inside(device_, d, n)) FAIL(BAD_VALUE);
  Op *o = add(s, SET); o->to = (void *)d; o->byte = b; o->size = n; o->to_device = 1;
  END
}

/* streams, events */
int cuStreamCreate(Stream **s, unsigned f) { BEGIN("cuStreamCreate", 1) 
  *s = calloc(1, sizeof(Stream)); live[STREAM]++;
  for (int i = 0; i < MOST_STREAMS; i++) if (!streams_[i]) { streams_[i] = *s; goto end; }
  abort();
  END }
int cuStreamDestroy(Stream *s) { BEGIN("cuStreamDestroy", 1) 
  for (int i = 0; i < MOST_STREAMS; i++) if (streams_[i] == s) streams_[i] = 0;
  drain(s, s->given); free(s->queue.ops); free(s->captured.ops); free(s); live[STREAM]--;
  END }
int cuStreamSynchronize(Stream *s) { BEGIN("cuStreamSynchronize", 1) if (s->capturing) FAIL(IN_CAPTURE); drain(s, s->given); e = sticky; END }
int cuEventCreate(Event **v, unsigned f) { BEGIN("cuEventCreate", 1) *v = calloc(1, sizeof(Event)); live[EVENT]++; END }
int cuEventDestroy(Event *v) { BEGIN("cuEventDestroy", 1) if (v->stream) drain(v->stream, v->ticket); free(v); live[EVENT]--; END }
int cuEventRecord(Event *v, Stream *s) { BEGIN("cuEventRecord", 1) Op *o = add(s, RECORD); o->event = v; v->stream = s; v->ticket = o->ticket; v->recorded = 1; END }
int cuEventSynchronize(Event *v) { BEGIN("cuEventSynchronize", 1) if (v->stream) drain(v->stream, v->ticket); e = sticky; END }
int cuStreamWaitEvent(Stream *s, Event *v, unsigned f) { BEGIN("cuStreamWaitEvent", 1) Op *o = add(s, WAIT); o->event = v; o->size = v->ticket; END }
int cuEventElapsedTime(float *ms, Event *a, Event *b) {
  BEGIN("cuEventElapsedTime", 1)
  if (!a->recorded || !b->recorded) FAIL(BAD_HANDLE);
  if (a->stream->done < a->ticket || b->stream->done < b->ticket) FAIL(NOT_READY);
  *ms = (float)(b->ms - a->ms);
  END
}

/* modules, launches */
enum { KPARAM_INFO = 0x17, REQNTID = 0x10, SIZED = 4 };  /* attributes of a kernel; those of this format have a size */
static int read_attributes(Function *f, const uint8_t *at, const uint8_t *end) {
  while (at + 4 <= end) {
    uint16_t size; uint32_t words[3];
    if (at[0] != SIZED) { at += 4; continue; }
    memcpy(&size, at + 2, 2); memcpy(words, at + 4, size < 12 ? size : 12);
    if (at[1] == REQNTID) f->threads = words[0];
    if (at[1] == KPARAM_INFO) {  /* index; ordinal and offset; size in the upper 14 bits */
      unsigned ordinal = words[1] & 0xffff, bytes = words[2] >> 18;
      if (ordinal >= MOST_PARAMS || (bytes != 8 && bytes != 4)) return BAD_IMAGE;
      f->kinds[ordinal] = bytes == 8 ? 'p' : 'i';
    }
    at += 4 + size;
  }
  return OK;
}
static int read_elf(Module *m, const uint8_t *image) {
  const Elf64_Ehdr *head = (const void *)image; const Elf64_Shdr *s = (const void *)(image + head->e_shoff);
  const char *strings = (const char *)image + s[head->e_shstrndx].sh_offset, prefix[] = ".nv.info.";
  for (int i = 0; i < head->e_shnum && m->count < 8; i++) {
    const char *name = strings + s[i].sh_name;
    if (strncmp(name, prefix, strlen(prefix))) continue;
    Function *f = &m->functions[m->count++]; f->allowed = 49152;
    snprintf(f->name, MOST_NAME, "%s", name + strlen(prefix));
    if (read_attributes(f, image + s[i].sh_offset, image + s[i].sh_offset + s[i].sh_size)) return BAD_IMAGE;
  }
  return OK;
}
int cuModuleLoadData(Module **m, const char *image) {
  BEGIN("cuModuleLoadData", 1)
  Module *made = calloc(1, sizeof(Module));
  if (!memcmp(image, ELFMAG, SELFMAG)) {
    if (read_elf(made, (const uint8_t *)image) || !made->count) { free(made); FAIL(BAD_IMAGE); }
    live[MODULE]++; *m = made; goto end;
  }
  char *text = strdup(image), *rest, *line = strtok_r(text, "\n", &rest);
  for (; line && made->count < 8; line = strtok_r(0, "\n", &rest)) {
    Function *f = &made->functions[made->count++];
    if (sscanf(line, "%255s %48s %d", f->name, f->kinds, &f->shared) != 3) { free(made); made = 0; break; }
    if (!strcmp(f->kinds, "-")) f->kinds[0] = 0;
    f->allowed = 49152;
  }
  free(text);
  if (!made || !made->count) FAIL(BAD_IMAGE);
  live[MODULE]++; *m = made;
  END
}
int cuModuleUnload(Module *m) { BEGIN("cuModuleUnload", 1) free(m); live[MODULE]--; END }
int cuModuleGetFunction(Function **f, Module *m, const char *name) {
  BEGIN("cuModuleGetFunction", 1)
  for (int i = 0; i < m->count; i++) if (!strcmp(m->functions[i].name, name)) { *f = &m->functions[i]; goto end; }
  e = NOT_FOUND;
  END
}
int cuFuncSetAttribute(Function *f, int a, int v) {
  BEGIN("cuFuncSetAttribute", 1)
  if (a == 8) { if (v > shared_most) FAIL(BAD_VALUE); f->allowed = v; }
  END
}
int cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared, Stream *s, void **p, void **extra) {
  BEGIN("cuLaunchKernel", 1)
  if (!x || !y || !z || y > 65535 || z > 65535 || bx * by * bz > 1024 || !bx) FAIL(BAD_VALUE);
  if (f->threads && bx * by * bz != f->threads) FAIL(BAD_VALUE);
  if ((int)shared > f->allowed || (int)shared < f->shared) FAIL(BAD_VALUE);
  Op o; memset(&o, 0, sizeof o); o.what = KERNEL; o.function = f; o.grid[0] = x; o.grid[1] = y; o.grid[2] = z; o.block = bx; o.shared = shared;
  for (int i = 0; f->kinds[i]; i++) {
    if (f->kinds[i] == 'p') { o.args[i] = *(u64 *)p[i]; if (o.args[i] && !inside(device_, o.args[i], 1)) FAIL(BAD_ADDRESS); }
    else o.args[i] = *(uint32_t *)p[i];
  }
  Op *to = add(s, KERNEL); u64 ticket = to->ticket; *to = o; to->ticket = ticket; launches++;
  END
}

/* graphs */
int cuStreamBeginCapture(Stream *s, int mode) { BEGIN("cuStreamBeginCapture", 1) if (s->capturing) FAIL(BAD_VALUE); s->capturing = 1; captures++; s->captured.count = 0; END }
int cuStreamEndCapture(Stream *s, List **g) {
  BEGIN("cuStreamEndCapture", 1)
  if (!s->capturing) FAIL(BAD_VALUE);
  s->capturing = 0; captures--; *g = calloc(1, sizeof(List)); live[GRAPH]++;
  for (int i = 0; i < s->captured.count; i++) *push(*g) = s->captured.ops[i];
  END
}
int cuGraphDestroy(List *g) { BEGIN("cuGraphDestroy", 1) free(g->ops); free(g); live[GRAPH]--; END }
int cuGraphInstantiate(List **x, List *g, u64 f) {
  BEGIN("cuGraphInstantiate", 1)
  *x = calloc(1, sizeof(List)); live[EXEC]++;
  for (int i = 0; i < g->count; i++) *push(*x) = g->ops[i];
  END
}
int cuGraphExecDestroy(List *x) { BEGIN("cuGraphExecDestroy", 1) free(x->ops); free(x); live[EXEC]--; END }
int cuGraphLaunch(List *x, Stream *s) {
  BEGIN("cuGraphLaunch", 1)
  for (int i = 0; i < x->count; i++) { Op *o = add(s, 0); u64 t = o->ticket; *o = x->ops[i]; o->ticket = t; }
  replays++;
  END
}

/* errors */
static const struct { int code; const char *name, *text; } errors[] = {
  {BAD_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
  {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}, {BAD_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
  {BAD_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}, {NO_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
  {BAD_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}, {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
  {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"}, {BAD_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
  {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}, {IN_CAPTURE, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"}};
static int tell(int code, const char **t, int name) {
  for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++) if (errors[i].code == code) { *t = name ? errors[i].name : errors[i].text; return OK; }
  *t = 0; return BAD_VALUE;
}
int cuGetErrorName(int code, const char **t) { return tell(code, t, 1); }
int cuGetErrorString(int code, const char **t) { return tell(code, t, 0); }

/* what cuda.bindings finds */
static int unknown(void) { return NOT_SUPPORTED; }
int cuGetProcAddress_v2(const char *name, void **f, int version, u64 flags, int *status);
#define F(name) {#name, (void *)name}
int cuGetProcAddress(const char *name, void **f, int version, u64 flags, int *status) { return cuGetProcAddress_v2(name, f, version, flags, status); }
int cuGetProcAddress_v2(const char *name, void **f, int version, u64 flags, int *status) {
  static const struct { const char *name; void *f; } table[] = {
    F(cuInit), F(cuDriverGetVersion), F(cuDeviceGetCount), F(cuDeviceGet), F(cuDeviceGetName), F(cuDeviceGetAttribute),
    F(cuDevicePrimaryCtxRetain), F(cuDevicePrimaryCtxRelease), F(cuCtxSetCurrent), F(cuCtxSynchronize), F(cuMemGetInfo), F(cuMemAlloc), F(cuMemFree),
    F(cuMemHostRegister), F(cuMemHostUnregister), F(cuMemcpyHtoDAsync), F(cuMemcpyDtoHAsync), F(cuMemcpyDtoDAsync), F(cuMemsetD8Async),
    F(cuStreamCreate), F(cuStreamDestroy), F(cuStreamSynchronize), F(cuEventCreate), F(cuEventDestroy), F(cuEventRecord),
    F(cuEventSynchronize), F(cuStreamWaitEvent), F(cuEventElapsedTime), F(cuModuleLoadData), F(cuModuleUnload), F(cuModuleGetFunction),
    F(cuFuncSetAttribute), F(cuLaunchKernel), F(cuStreamBeginCapture), F(cuStreamEndCapture), F(cuGraphDestroy), {"cuGraphInstantiate", (void *)cuGraphInstantiate}, {"cuGraphInstantiateWithFlags", (void *)cuGraphInstantiate},
    F(cuGraphExecDestroy), F(cuGraphLaunch), F(cuGetErrorName), F(cuGetErrorString), F(cuGetProcAddress)};
  *f = (void *)unknown;
  for (unsigned i = 0; i < sizeof table / sizeof *table; i++) if (!strcmp(table[i].name, name)) *f = table[i].f;
  if (status) *status = 0;
  return OK;
}

/* what tests set and ask */
void stub_reset(size_t total, int n, int major, int minor) {
  total_ = total; devices = n; for (int i = 0; i < MOST_DEVICES; i++) version_[i] = 10 * major + minor; sticky = 0; fail_code = 0; hook = 0; captures = 0;
  unpinned = launches = replays = 0; memset(calls_of, 0, sizeof calls_of); memset(live, 0, sizeof live);
  for (int i = 0; i < MOST_BLOCKS; i++) { if (device_[i].size) free((void *)device_[i].start); device_[i].size = host_[i].size = 0; }
  used_ = 0; current = 0; memset(streams_, 0, sizeof streams_);
}
long stub_room(u64 at) {  /* bytes from an address to the end of its allocation, 0 outside of all */
  for (int i = 0; i < MOST_BLOCKS; i++) if (device_[i].size && at >= device_[i].start && at < device_[i].start + device_[i].size) return (long)(device_[i].start + device_[i].size - at);
  return 0;
}
void stub_set_version(int device, int version) { version_[device] = version; }
void stub_set_hook(Hook h) { hook = h; }
void stub_fail(const char *name, long after, int code) { snprintf(fail_name, sizeof fail_name, "%s", name); fail_after = after; fail_code = code; }
long stub_live(int kind) { return live[kind]; }
long stub_used(void) { return (long)used_; }
long stub_unpinned(void) { return unpinned; }
long stub_launches(void) { return launches; }
long stub_replays(void) { return replays; }
long stub_calls(const char *name) { return *count_of(name); }
