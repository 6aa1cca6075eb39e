/*
Power, temperature and clock of the GPU, from NVML where the driver brings it. The library is loaded when
the program runs; the five declarations needed stand here, so no header is either. Every query that fails
is left out.
*/
#ifndef CM_CUDA_NVML_CUH
#define CM_CUDA_NVML_CUH

#include "runtime.cuh"

#ifdef CM_EMU

static inline int nvml_start(int device) { return (void)device, -1; }
static inline void nvml_state(char *text, size_t size) { (void)size, text[0] = 0; }

#else

#include <dlfcn.h>

typedef struct {
    void *device;
    int (*power)(void *device, unsigned *milliwatts);
    int (*temperature)(void *device, int sensor, unsigned *celsius); /* sensor 0: the die */
    int (*clock)(void *device, int domain, unsigned *mhz);           /* domain 1: the multiprocessors */
} Nvml;
inline Nvml nvml;

/* Finds the CUDA device among NVML's, which counts them in another order, by its place on the bus. */
static inline int nvml_start(int cuda_device) {
    char bus[32];
    void *device = NULL;
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    memset(&nvml, 0, sizeof nvml);
    if (!library) return -1;
    int (*init)(void) = (int (*)(void))dlsym(library, "nvmlInit_v2");
    int (*find)(const char *, void **) =
        (int (*)(const char *, void **))dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2");
    nvml.power = (int (*)(void *, unsigned *))dlsym(library, "nvmlDeviceGetPowerUsage");
    nvml.temperature = (int (*)(void *, int, unsigned *))dlsym(library, "nvmlDeviceGetTemperature");
    nvml.clock = (int (*)(void *, int, unsigned *))dlsym(library, "nvmlDeviceGetClockInfo");
    if (cudaDeviceGetPCIBusId(bus, (int)sizeof bus, cuda_device) != cudaSuccess) {
        cudaGetLastError(); /* forget it */
        return -1;
    }
    if (!init || !find || init() || find(bus, &device)) return -1;
    nvml.device = device;
    return 0;
}

/* "gpu_w": 640, "gpu_c": 61, "gpu_mhz": 1755; nothing where there is nothing to say. */
static inline void nvml_state(char *text, size_t size) {
    unsigned x = 0;
    size_t at = 0;
    text[0] = 0;
    if (!nvml.device) return;
    if (nvml.power && !nvml.power(nvml.device, &x))
        at += (size_t)snprintf(text + at, size - at, "\"gpu_w\": %u", (x + 500) / 1000);
    if (at < size && nvml.temperature && !nvml.temperature(nvml.device, 0, &x))
        at += (size_t)snprintf(text + at, size - at, "%s\"gpu_c\": %u", at ? ", " : "", x);
    if (at < size && nvml.clock && !nvml.clock(nvml.device, 1, &x))
        at += (size_t)snprintf(text + at, size - at, "%s\"gpu_mhz\": %u", at ? ", " : "", x);
    if (at >= size) text[0] = 0; /* half a member is worse than none */
}

#endif

#endif
