/*
Power, temperature and clock of the GPU, from NVML where the driver has it. The library is found
when the program runs. The five declarations that are needed are in this file, so no header is
needed either. Queries that fail are left out.
*/
#ifndef CM_CUDA_NVML_CUH
#define CM_CUDA_NVML_CUH

#include "library.h"
#include "runtime.cuh"

/* A call of NVML takes up to a millisecond, between one step and the next. So NVML is asked at
   most once a second, and its last answer is repeated in between. */
/* Puts what is known at time `now` (seconds) into `text`, after a query if the last one is more
   than a second old. A text that does not fit into `size` bytes becomes "", because half a
   member of a JSON object is worse than none. */
static inline void nvml_cached(NvmlCache *cache, double now, void (*query)(char *text, size_t size),
                               char *text, size_t size) {
    if (!cache->asked || now - cache->time >= 1) {
        query(cache->text, sizeof cache->text);
        cache->time = now;
        cache->asked = 1;
    }
    if ((size_t)snprintf(text, size, "%s", cache->text) >= size && size) text[0] = 0;
}

#ifdef CM_EMU

static inline int nvml_start(int device) {
    (void)device;
    return -1;
}
static inline void nvml_state(char *text, size_t size) {
    (void)size;
    text[0] = 0;
}

#else

/* Loads NVML and finds the CUDA device in it by its place on the bus, because NVML counts
   devices in another order. Returns 0, or -1 if there is no NVML. */
static inline int nvml_start(int cuda_device) {
    static const char *const names[] = {"libnvidia-ml.so.1", NULL};
    char bus[32], path[1024], why[256];
    void *device = NULL;
    LibrarySearch search = {names, NULL, NULL, NULL, 0, 0};
    memset(&cm_gpu.nvml, 0, sizeof cm_gpu.nvml);
    void *library = library_open(&search, path, sizeof path, why, sizeof why);
    if (!library) return -1;
    int (*init)(void) = (int (*)(void))dlsym(library, "nvmlInit_v2");
    int (*find)(const char *, void **) =
        (int (*)(const char *, void **))dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
    cm_gpu.nvml.power = (int (*)(void *, unsigned *))dlsym(library, "nvmlDeviceGetPowerUsage");
    cm_gpu.nvml.temperature =
        (int (*)(void *, int, unsigned *))dlsym(library, "nvmlDeviceGetTemperature");
    cm_gpu.nvml.clock = (int (*)(void *, int, unsigned *))dlsym(library, "nvmlDeviceGetClockInfo");
    if (cudaDeviceGetPCIBusId(bus, (int)sizeof bus, cuda_device) != cudaSuccess) {
        cudaGetLastError(); /* clears the error */
        return -1;
    }
    if (!init || !find || init() || find(bus, &device)) return -1;
    cm_gpu.nvml.device = device;
    return 0;
}

static inline void nvml_query(char *text, size_t size) {
    unsigned x = 0;
    size_t at = 0;
    text[0] = 0;
    if (cm_gpu.nvml.power && !cm_gpu.nvml.power(cm_gpu.nvml.device, &x))
        at += (size_t)snprintf(text + at, size - at, "\"gpu_w\": %u", (x + 500) / 1000);
    if (at < size && cm_gpu.nvml.temperature && !cm_gpu.nvml.temperature(cm_gpu.nvml.device, 0, &x))
        at += (size_t)snprintf(text + at, size - at, "%s\"gpu_c\": %u", at ? ", " : "", x);
    if (at < size && cm_gpu.nvml.clock && !cm_gpu.nvml.clock(cm_gpu.nvml.device, 1, &x))
        at += (size_t)snprintf(text + at, size - at, "%s\"gpu_mhz\": %u", at ? ", " : "", x);
    if (at >= size) text[0] = 0; /* half a member is worse than none */
}

/* "gpu_w": 640, "gpu_c": 61, "gpu_mhz": 1755, at most a second old; "" if nothing is known. */
static inline void nvml_state(char *text, size_t size) {
    text[0] = 0;
    if (cm_gpu.nvml.device) nvml_cached(&cm_gpu.nvml.cache, now_seconds(), nvml_query, text, size);
}

#endif

#endif
